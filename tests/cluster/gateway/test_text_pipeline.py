"""The pipeline that both front doors share."""

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tests.support.fake_backend import Behaviour, FakeBackend
from tests.support.fake_text import ByteCodec

from twinflow.cluster.gateway.generation import CompletionDelta, collect
from twinflow.cluster.gateway.metrics import GatewayMetrics
from twinflow.cluster.gateway.text_pipeline import Call, TextPipeline
from twinflow.cluster.gateway.validation import (
    ChatMessage,
    ChatPrompt,
    GenerationRequest,
    Prompt,
    RequestOptions,
    TextPrompt,
    TokenPrompt,
    build_request,
)
from twinflow.protos.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineError,
    Overloaded,
    WorkerLost,
)
from twinflow.runtime.outputs import FinishReason
from twinflow.runtime.sampling_params import completion_seed


class Bench:
    """A pipeline and what is round it; time stands still unless told to pass."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.backend = FakeBackend(behaviour)
        self.registry = CollectorRegistry()
        self.now = 100.0
        self.pipeline = TextPipeline(
            self.backend,
            ByteCodec(),
            GatewayMetrics(self.registry, "tiny"),
            clock=lambda: self.now,
            new_seed=iter(range(1000, 2000)).__next__,
        )

    def request(self, *prompts: Prompt, **sampling: Any) -> GenerationRequest:
        wanted = prompts or (TextPrompt("hi"),)
        return build_request(self.backend.model, "tiny", wanted, sampling, RequestOptions())

    def call(self, deadline_s: float = 60.0) -> Call:
        return Call("request", self.now, "key", deadline_s)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"model_name": "tiny", **labels})

    async def run(self, request: GenerationRequest) -> list[str]:
        async with self.pipeline.open(request, self.call()) as generation:
            return [output.text for output in await collect(generation)]


def fixed(text: str) -> Callable[[object], bytes]:
    return lambda spec: text.encode()


async def test_specs_carry_everything() -> None:
    bench = Bench()
    request = bench.request(TokenPrompt((1, 2)), TextPrompt("x"), n=2, max_tokens=None)
    await bench.run(request)
    bench.backend.check_integrity()
    specs = bench.backend.specs
    assert [spec.request_id for spec in specs] == [f"request-{i}" for i in range(4)]
    assert [spec.prompt_token_ids for spec in specs] == [(1, 2), (1, 2), (120,), (120,)]
    assert [spec.params.max_tokens for spec in specs] == [254, 254, 255, 255]
    assert [spec.params.seed for spec in specs] == [
        1000, completion_seed(1000, 1), 1001, completion_seed(1001, 1),
    ]  # fmt: skip
    assert {spec.api_key_id for spec in specs} == {"key"}
    assert {spec.params.n for spec in specs} == {1}


async def test_chat_is_rendered() -> None:
    bench = Bench()
    messages = (ChatMessage("developer", "be brief"), ChatMessage("user", "hi"))
    await bench.run(bench.request(ChatPrompt(messages)))
    prompt = bytes(bench.backend.specs[0].prompt_token_ids)
    assert prompt == b"system: be brief\nuser: hi\nassistant:"


async def test_completions_come_merged_and_whole() -> None:
    bench = Bench(Behaviour(reply=fixed("hello"), tokens_per_delta=2))
    request = bench.request(n=3, max_tokens=10)
    deltas: list[CompletionDelta] = []
    async with bench.pipeline.open(request, bench.call()) as generation:
        assert (generation.size, generation.finished, generation.delivered) == (3, False, False)
        async for delta in generation:
            deltas.append(delta)
        assert generation.finished
        usage = generation.usage
    assert {delta.index for delta in deltas[:3]} == {0, 1, 2}
    for index in range(3):
        assert "".join(delta.text for delta in deltas if delta.index == index) == "hello"
    assert (usage.prompt_tokens, usage.completion_tokens) == (2, 18)
    bench.backend.check_integrity()


LONG_PROMPT = TokenPrompt(tuple(range(17)))  # a block is 16 tokens


async def test_completions_of_a_long_prompt_wait_for_the_second_token_of_the_first() -> None:
    bench = Bench(Behaviour(delay_s=0.01))
    request = bench.request(LONG_PROMPT, TextPrompt("short"), n=3, seed=5, max_tokens=8)
    async with bench.pipeline.open(request, bench.call()) as generation:
        seen: list[tuple[int, set[int]]] = []
        async for delta in generation:
            seen.append((delta.index, {int(name[-1]) for name in bench.backend.live}))
    order = [index for index, _ in seen]
    assert set(order) == set(range(6))
    assert order.index(1) > order.index(0, order.index(0) + 1)
    # With its first token it is still alone; the completions of the short prompt never wait.
    assert seen[order.index(0)][1] == {0, 3, 4, 5}
    bench.backend.check_integrity()


async def test_completions_are_those_of_separate_requests() -> None:
    bench = Bench()
    together = await bench.run(bench.request(LONG_PROMPT, n=4, seed=5, max_tokens=12))
    seeds = [completion_seed(5, index) for index in range(4)]
    alone = [
        (await bench.run(bench.request(LONG_PROMPT, seed=seed, max_tokens=12)))[0] for seed in seeds
    ]
    assert together == alone
    assert len(set(together)) == 4


async def test_completions_do_not_wait_for_one_that_ends_with_its_first_token() -> None:
    bench = Bench()
    texts = await bench.run(bench.request(LONG_PROMPT, n=3, max_tokens=1))
    assert [len(text) for text in texts] == [1, 1, 1]
    bench.backend.check_integrity()


async def test_a_first_completion_that_fails_ends_those_that_wait_for_it() -> None:
    bench = Bench(Behaviour(fail_after=1))
    with pytest.raises(WorkerLost):
        await bench.run(bench.request(LONG_PROMPT, n=3))
    assert bench.backend.outcomes == {"failed": 1, "released": 2}
    assert bench.metric("twinflow:request_failures_total", code="worker_lost") == 3
    assert bench.metric("twinflow:requests_in_flight") == 0
    bench.backend.check_integrity()


async def test_completions_that_wait_are_released_when_the_reader_leaves() -> None:
    bench = Bench(Behaviour(first_delay_s=60))
    async with bench.pipeline.open(bench.request(LONG_PROMPT, n=3), bench.call()) as generation:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await anext(generation)
    assert bench.backend.outcomes == {"aborted": 1, "released": 2}
    bench.backend.check_integrity()


async def test_waiting_for_the_first_completion_takes_from_the_deadline() -> None:
    bench = Bench(Behaviour(delay_s=0.001))
    granted: dict[str, float] = {}
    generate = bench.backend.generate

    def noting(spec: Any) -> Any:
        granted[spec.request_id] = spec.deadline_s
        return generate(spec)

    bench.backend.generate = noting  # type: ignore[method-assign]
    request = bench.request(LONG_PROMPT, n=2, max_tokens=8)
    async with bench.pipeline.open(request, bench.call(deadline_s=60.0)) as generation:
        async for _ in generation:
            bench.now += 2.0
    assert granted["request-0"] == 60.0
    assert granted["request-1"] < 60.0


async def test_no_room_to_read_a_prompt_is_a_rejection() -> None:
    bench = Bench()
    with pytest.raises(Overloaded):
        await bench.run(bench.request(TextPrompt("x" * (33 << 20))))
    reason = {"reason": "rate_limit_exceeded"}
    assert bench.metric("vllm:admission_rejections_total", **reason) == 1
    assert bench.backend.specs == []


async def test_long_texts_are_tokenised_aside() -> None:
    bench = Bench()
    with pytest.raises(ContextLengthExceeded):
        await bench.run(bench.request(TextPrompt("x" * 100_000)))
    assert bench.backend.specs == []


async def test_leaving_early_aborts_and_releases() -> None:
    bench = Bench(Behaviour(first_delay_s=60))
    request = bench.request(n=4)
    async with bench.pipeline.open(request, bench.call()):
        pass  # admitted, and never read
    assert bench.backend.outcomes == {"released": 4}
    async with bench.pipeline.open(request, bench.call()) as generation:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await anext(generation)
    assert bench.backend.outcomes == {"released": 4, "aborted": 4}
    bench.backend.check_integrity()
    assert bench.metric("vllm:request_success_total", finished_reason="abort") == 8
    assert bench.metric("twinflow:requests_in_flight") == 0


async def test_what_is_cut_off_is_accounted_for_from_its_first_token_on() -> None:
    """Its worker has told where the time went until then; before, nobody knows."""
    for behaviour, reads, counted in (
        (Behaviour(delay_s=60), 1, 1),
        (Behaviour(first_delay_s=60), 0, 0),
        (Behaviour(fail_after=1), 1, 1),
    ):
        bench = Bench(behaviour)
        with suppress(WorkerLost):
            async with bench.pipeline.open(bench.request(), bench.call()) as generation:
                for _ in range(reads):
                    await anext(generation)
                bench.now += 3.0
                if behaviour.fail_after:
                    await anext(generation)
        assert bench.metric("vllm:request_queue_time_seconds_count") == counted
        assert bench.metric("vllm:request_prefill_time_seconds_count") == counted
        assert bench.metric("vllm:request_decode_time_seconds_sum") == pytest.approx(
            3.0 * counted, abs=0.5
        )
        assert bench.metric("vllm:e2e_request_latency_seconds_count") == 0


async def test_an_error_of_the_reader_aborts() -> None:
    bench = Bench(Behaviour(delay_s=60))
    with pytest.raises(ZeroDivisionError):
        async with bench.pipeline.open(bench.request(), bench.call()) as generation:
            async for _ in generation:
                raise ZeroDivisionError
    assert bench.backend.outcomes == {"aborted": 1}


async def test_refused_requests_leave_nothing() -> None:
    bench = Bench()
    bench.backend.max_sequences = 2
    with pytest.raises(Overloaded):
        await bench.run(bench.request(n=3))
    bench.backend.check_integrity()
    assert bench.metric("twinflow:requests_accepted_total") == 0
    reason = {"reason": "rate_limit_exceeded"}
    assert bench.metric("vllm:admission_rejections_total", **reason) == 1


async def test_a_lost_worker_is_counted_once_per_sequence() -> None:
    bench = Bench(Behaviour(fail_after=2))
    with pytest.raises(WorkerLost):
        await bench.run(bench.request(n=2))
    assert bench.metric("twinflow:request_failures_total", code="worker_lost") == 2
    assert bench.metric("twinflow:requests_in_flight") == 0
    bench.backend.check_integrity()


async def test_a_stream_without_an_end_is_an_error() -> None:
    bench = Bench(Behaviour(reply=fixed("ab")))
    generate = bench.backend.generate

    async def cut_short(spec: Any) -> Any:
        stream = generate(spec)
        yield await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]

    bench.backend.generate = cut_short  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="without a reason"):
        await bench.run(bench.request())


async def test_the_deadline_starts_with_the_call() -> None:
    bench = Bench()
    call = bench.call(deadline_s=5.0)
    bench.now += 2.0
    async with bench.pipeline.open(bench.request(), call):
        assert bench.backend.specs[0].deadline_s == 3.0
    bench.now += 3.0
    with pytest.raises(DeadlineExceeded):
        async with bench.pipeline.open(bench.request(), call):
            pass
    assert len(bench.backend.specs) == 1


async def test_stop_string_ends_a_sequence_early() -> None:
    bench = Bench(Behaviour(reply=fixed("one two three"), delay_s=0.001))
    request = bench.request(stop=("two",), max_tokens=50)
    async with bench.pipeline.open(request, bench.call()) as generation:
        (output,) = await collect(generation)
        assert generation.usage.completion_tokens == len("one two")
    assert (output.text, output.stop_reason) == ("one ", "two")
    assert output.finish_reason is FinishReason.STOP
    assert bench.backend.outcomes == {"aborted": 1}
    assert bench.metric("vllm:request_success_total", finished_reason="stop") == 1


async def test_latencies_are_measured_from_the_call() -> None:
    bench = Bench(Behaviour(reply=fixed("abc")))
    call = bench.call()
    bench.now += 1.0
    async with bench.pipeline.open(bench.request(), call) as generation:
        bench.now += 1.0
        async for _ in generation:
            bench.now += 0.5
        found = generation.timeline
    assert bench.metric("vllm:time_to_first_token_seconds_sum") == 2.0
    assert bench.metric("vllm:inter_token_latency_seconds_sum") == 1.5
    assert bench.metric("vllm:e2e_request_latency_seconds_sum") == 3.5
    assert found.total_seconds == 3.5
    assert found.phases[0].seconds == 1.0
    assert math.isclose(sum(phase.seconds for phase in found.phases), 3.5)
