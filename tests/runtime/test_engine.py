"""The engine over a fake executor that computes only from what the block tables lead to."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.engines import (
    Collected,
    EngineSpec,
    FakeExecutor,
    ManualClock,
    create_engine,
    create_request,
    expected_output,
    run,
)

from twinflow.protos.errors import ContextLengthExceeded, EngineError, InvalidRequest
from twinflow.runtime.executor import LayersDone, Work
from twinflow.runtime.kv_progress import KVProgress
from twinflow.runtime.outputs import (
    FinishReason,
    NumericalFault,
    PhaseTime,
    SampledRun,
    SampledToken,
)
from twinflow.runtime.request import Request, RequestStatus
from twinflow.runtime.sampling_params import SamplingParams


def test_generates_what_the_model_says_and_gives_everything_back() -> None:
    engine, executor = create_engine()
    request = create_request(prompt=37, max_tokens=9)
    engine.add_request(request)
    done = run(engine)
    assert done.tokens[request.request_id] == expected_output(request.prompt_token_ids, 9)
    assert done.last[request.request_id].finish_reason is FinishReason.LENGTH
    assert engine.blocks.num_idle == engine.blocks.num_blocks
    assert len(engine.queues) == 0
    assert executor.admitted == set()


def test_prompt_is_computed_in_chunks_and_decodes_are_never_left_out() -> None:
    engine, executor = create_engine(EngineSpec(max_num_batched_tokens=8))
    first = create_request(prompt=4, max_tokens=12)
    engine.add_request(first)
    engine.step()
    second = create_request(prompt=40, max_tokens=2)
    engine.add_request(second)
    run(engine)
    during_prefill = executor.batches[1:7]
    assert all(batch[0][0] == first.request_id for batch in during_prefill)
    assert all(sum(count for *_, count in batch) <= 8 for batch in executor.batches)


class TestStopping:
    """Why requests end."""

    def prompt_and_output(self) -> tuple[list[int], list[int]]:
        prompt = [5, 6, 7]
        return prompt, expected_output(prompt, 6)

    def test_end_of_sequence_token(self) -> None:
        prompt, output = self.prompt_and_output()
        engine, _ = create_engine()
        request = create_request(prompt, max_tokens=6, eos_token_ids=(output[2],))
        engine.add_request(request)
        delta = run(engine).last[request.request_id]
        assert (delta.finish_reason, delta.stop_token_id) == (FinishReason.STOP, output[2])
        assert len(request.output_token_ids) == 3

    def test_ignored_end_of_sequence_token(self) -> None:
        prompt, output = self.prompt_and_output()
        engine, _ = create_engine()
        params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
        request = create_request(prompt, eos_token_ids=(output[2],), params=params)
        engine.add_request(request)
        assert run(engine).tokens[request.request_id] == output

    def test_stop_token_counts_even_if_eos_is_ignored(self) -> None:
        prompt, output = self.prompt_and_output()
        engine, _ = create_engine()
        params = SamplingParams(
            temperature=0, max_tokens=6, ignore_eos=True, stop_token_ids=(output[1],)
        )
        request = create_request(prompt, params=params)
        engine.add_request(request)
        assert run(engine).tokens[request.request_id] == output[:2]

    def test_no_stop_before_min_tokens(self) -> None:
        prompt, output = self.prompt_and_output()
        engine, _ = create_engine()
        params = SamplingParams(temperature=0, max_tokens=6, min_tokens=4)
        request = create_request(prompt, eos_token_ids=(output[2],), params=params)
        engine.add_request(request)
        assert run(engine).tokens[request.request_id] == output


class TestRefusals:
    """What could never be served is refused before it is queued."""

    def test_empty_prompt(self) -> None:
        engine, _ = create_engine()
        with pytest.raises(InvalidRequest, match="no tokens"):
            engine.add_request(create_request(prompt=[]))

    def test_longer_than_the_context(self) -> None:
        engine, _ = create_engine(EngineSpec(max_model_len=32))
        with pytest.raises(ContextLengthExceeded, match="33 tokens; the limit is 32"):
            engine.add_request(create_request(prompt=30, max_tokens=3))
        engine.add_request(create_request(prompt=30, max_tokens=2))

    def test_same_id_twice(self) -> None:
        engine, _ = create_engine()
        request = create_request()
        engine.add_request(request)
        with pytest.raises(InvalidRequest, match="already in use"):
            engine.add_request(request)


class TestPrefixCache:
    """Prompts that begin alike share blocks."""

    def test_second_request_computes_only_what_is_new(self) -> None:
        engine, executor = create_engine()
        prompt = list(range(20))
        engine.add_request(create_request(prompt, max_tokens=1))
        run(engine)
        again = create_request([*prompt, 77, 78], max_tokens=3)
        engine.add_request(again)
        done = run(engine)
        assert done.tokens[again.request_id] == expected_output([*prompt, 77, 78], 3)
        assert done.last[again.request_id].cached_tokens == 20
        assert executor.batches[-3][0] == (again.request_id, 20, 2)

    def test_whole_prompt_cached_still_computes_one_token(self) -> None:
        engine, executor = create_engine()
        prompt = list(range(16))
        for _ in range(2):
            engine.add_request(create_request(prompt, max_tokens=1))
            run(engine)
        assert executor.batches[-1][0][1:] == (12, 4)

    def test_salt_separates(self) -> None:
        engine, _ = create_engine()
        prompt = list(range(20))
        engine.add_request(create_request(prompt, max_tokens=1, cache_salt="a"))
        run(engine)
        other = create_request(prompt, max_tokens=1, cache_salt="b")
        engine.add_request(other)
        assert run(engine).last[other.request_id].cached_tokens == 0

    def test_switched_off(self) -> None:
        engine, _ = create_engine(EngineSpec(enable_prefix_caching=False))
        prompt = list(range(20))
        for _ in range(2):
            request = create_request(prompt, max_tokens=1)
            engine.add_request(request)
            assert run(engine).last[request.request_id].cached_tokens == 0


def test_preempted_requests_end_with_the_same_tokens() -> None:
    spec = EngineSpec(num_blocks=13, max_model_len=48)
    engine, _ = create_engine(spec)
    requests = [create_request(prompt=8, max_tokens=30) for _ in range(4)]
    for request in requests:
        engine.add_request(request)
    done = run(engine)
    assert engine.counters.preemptions > 0
    for request in requests:
        assert done.tokens[request.request_id] == expected_output(request.prompt_token_ids, 30)
    assert engine.blocks.num_idle == engine.blocks.num_blocks


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), num_blocks=st.integers(12, 40), budget=st.integers(8, 32))
def test_any_mix_gives_the_same_tokens(seed: int, num_blocks: int, budget: int) -> None:
    """Arrivals, aborts, shared prefixes and preemption change nobody's tokens."""
    rng = random.Random(seed)
    spec = EngineSpec(num_blocks=num_blocks, max_num_batched_tokens=budget, max_model_len=44)
    engine, executor = create_engine(spec)
    stem = [rng.randrange(900) for _ in range(24)]
    live: dict[str, Request] = {}
    aborted: set[str] = set()
    done = Collected()
    for _ in range(60):
        if rng.random() < 0.4:
            prompt = stem[: rng.randrange(24)] + [
                rng.randrange(900) for _ in range(1 + rng.randrange(8))
            ]
            request = create_request(
                prompt, max_tokens=1 + rng.randrange(12), priority=rng.randrange(2)
            )
            engine.add_request(request)
            live[request.request_id] = request
        if live and rng.random() < 0.05:
            victim = rng.choice(sorted(live))
            engine.abort(victim)
            aborted.add(victim)
        engine.step()
        done.take(engine)
        engine.check_integrity()
    run(engine, done)
    for request_id, request in live.items():
        want = expected_output(request.prompt_token_ids, request.params.max_tokens or 0)
        got = done.tokens.get(request_id, [])
        assert got == (want[: len(got)] if request_id in aborted else want)
    assert engine.blocks.num_idle == engine.blocks.num_blocks
    assert executor.admitted == set()


class TestFailures:
    """A failure stays with the requests that had a part in it."""

    def test_failed_step_fails_its_requests_only(self) -> None:
        poison = create_request(prompt=5, max_tokens=5)
        executor = FakeExecutor(4, fail=lambda work: work.request is poison)
        engine, _ = create_engine(executor=executor)
        engine.add_request(poison)
        with_poison = run(engine)
        good = create_request(prompt=5, max_tokens=5)
        engine.add_request(good)
        done = run(engine)
        assert isinstance(with_poison.failures[poison.request_id], EngineError)
        assert done.tokens[good.request_id] == expected_output(good.prompt_token_ids, 5)
        assert engine.blocks.num_idle == engine.blocks.num_blocks

    def test_repeated_failure_gives_up(self) -> None:
        engine, _ = create_engine(executor=FakeExecutor(4, fail=lambda _: True))
        for _ in range(2):
            engine.add_request(create_request())
            engine.step()
        engine.add_request(create_request())
        with pytest.raises(EngineError, match="3 times in a row"):
            engine.step()

    def test_fault_of_one_row_leaves_the_others(self) -> None:
        bad = create_request(max_tokens=3)

        class OneFault(FakeExecutor):
            def execute(
                self, work: Sequence[Work], on_layers: LayersDone | None
            ) -> list[SampledRun]:
                results = super().execute(work, on_layers)
                sampling = [item for item in work if item.group.samples]
                return [
                    NumericalFault(0) if item.request is bad else result
                    for item, result in zip(sampling, results, strict=True)
                ]

        engine, _ = create_engine(executor=OneFault(4))
        good = create_request(max_tokens=3)
        for request in (bad, good):
            engine.add_request(request)
        done = run(engine)
        assert set(done.failures) == {bad.request_id}
        assert done.tokens[good.request_id] == expected_output(good.prompt_token_ids, 3)


class TestHandoff:
    """One engine computes the prompt, another one decodes."""

    def prefill(self, request: Request) -> tuple[FakeExecutor, list[int], list[KVProgress]]:
        progress: list[KVProgress] = []
        engine, executor = create_engine(on_kv=progress.append)
        held = create_request(request.prompt_token_ids, hold=True)
        held.request_id = request.request_id
        engine.add_request(held)
        done = run(engine)
        assert held.status is RequestStatus.HELD
        assert engine.blocks.num_idle < engine.blocks.num_blocks
        blocks = list(engine.blocks.blocks(held.request_id))
        self.first_token = done.tokens[held.request_id][0]
        engine.release(held.request_id)
        assert engine.blocks.num_idle == engine.blocks.num_blocks
        return executor, blocks, progress

    def test_decode_continues_where_prefill_ended(self) -> None:
        request = create_request(prompt=21, max_tokens=6, fetch_from="peer")
        source, theirs, progress = self.prefill(request)
        assert [(p.first_layer, p.end_layer, p.token_start, p.token_end) for p in progress] == [
            (0, 2, 0, 16), (2, 4, 0, 16), (0, 2, 16, 21), (2, 4, 16, 21),
        ]  # fmt: skip
        clock = ManualClock()
        engine, executor = create_engine(clock=clock)
        engine.add_request(request)
        engine.step()
        (order,) = engine.take_outputs().receives
        assert (order.first_block, len(order.blocks)) == (0, 6)
        executor.copy_blocks(source, theirs, order.blocks)
        clock.advance(3.0)
        done = Collected()
        phases = (PhaseTime("prefill_queue", 0.5), PhaseTime("prefill", 1.5))
        engine.receive_first_token(request.request_id, SampledToken(self.first_token), phases, 0)
        engine.receive_done(request.request_id)
        done = run(engine, done)
        assert done.tokens[request.request_id] == expected_output(request.prompt_token_ids, 6)
        names = {p.name: p.seconds for p in done.last[request.request_id].phases}
        assert (names["prefill_queue"], names["prefill"], names["transfer"]) == (0.5, 1.5, 1.0)
        assert sum(names.values()) == pytest.approx(3.0)
        assert engine.blocks.num_idle == engine.blocks.num_blocks

    def test_failed_transfer_is_computed_here(self) -> None:
        request = create_request(prompt=21, max_tokens=6, fetch_from="peer")
        engine, _ = create_engine()
        engine.add_request(request)
        engine.step()
        engine.take_outputs()
        first = expected_output(request.prompt_token_ids, 1)[0]
        engine.receive_first_token(request.request_id, SampledToken(first), (), 0)
        engine.receive_failed(request.request_id, EngineError("lost"))
        done = run(engine)
        assert done.tokens[request.request_id] == expected_output(request.prompt_token_ids, 6)

    def test_blocks_of_an_aborted_receive_stay_held_until_it_is_over(self) -> None:
        request = create_request(prompt=21, fetch_from="peer")
        engine, _ = create_engine()
        engine.add_request(request)
        engine.step()
        engine.abort(request.request_id)
        assert engine.blocks.num_idle == engine.blocks.num_blocks - 6
        engine.receive_failed(request.request_id, EngineError("cancelled"))
        assert engine.blocks.num_idle == engine.blocks.num_blocks
        assert len(engine.queues) == 0
        assert not engine.take_outputs().failures

    def test_first_token_that_ends_the_request(self) -> None:
        request = create_request(prompt=9, max_tokens=1, fetch_from="peer")
        engine, _ = create_engine()
        engine.add_request(request)
        engine.step()
        engine.take_outputs()
        engine.receive_first_token(request.request_id, SampledToken(7), (), 0)
        ((_, delta),) = engine.take_outputs().deltas
        assert delta.finish_reason is FinishReason.LENGTH
        engine.receive_done(request.request_id)
        assert engine.blocks.num_idle == engine.blocks.num_blocks

    def test_probe_fails_instead_of_computing_here(self) -> None:
        request = create_request(prompt=9, fetch_from="peer", probe=True)
        engine, _ = create_engine()
        engine.add_request(request)
        engine.step()
        engine.receive_failed(request.request_id, EngineError("no link"))
        assert set(run(engine).failures) == {request.request_id}
        assert engine.blocks.num_idle == engine.blocks.num_blocks

    def test_short_uncached_rest_is_not_fetched(self) -> None:
        engine, _ = create_engine()
        prompt = list(range(20))
        engine.add_request(create_request(prompt, max_tokens=1))
        run(engine)
        request = create_request([*prompt, 1, 2], max_tokens=2, fetch_from="peer")
        engine.add_request(request)
        done = run(engine)
        assert done.tokens[request.request_id] == expected_output([*prompt, 1, 2], 2)
