"""Handed-over prompts end in the tokens that one engine computes alone."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio
from tests.support.workers import (
    Answer,
    Gateway,
    Oracle,
    attached,
    idle,
    peer_of,
    random_prompt,
    running,
    submission,
    worker_config,
)

from twinflow.runtime.outputs import CompletionOutput, FinishReason
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.workers.server import WorkerServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREEDY = SamplingParams(temperature=0, max_tokens=12, seed=0, ignore_eos=True, logprobs=3)
SEEDED = SamplingParams(
    temperature=0.9,
    top_k=40,
    top_p=0.95,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    logit_bias={17: 2.0},
    max_tokens=12,
    min_tokens=4,
    seed=2**63 + 11,
    ignore_eos=True,
    logprobs=2,
)
# Of blocks of 8 tokens and chunks of 32: within a block, at its end, one over, many chunks.
LENGTHS = (1, 2, 7, 8, 9, 31, 32, 33, 64, 65, 100, 240)


@dataclass
class Trio:
    """One prefill, one decode and one mixed worker, with sessions to all of them."""

    prefill: WorkerServer
    decode: WorkerServer
    mixed: WorkerServer
    to_prefill: Gateway
    to_decode: Gateway
    to_mixed: Gateway

    async def hand_over(self, prompt: list[int], params: SamplingParams) -> Answer:
        """Complete a prompt that the prefill worker computes and the decode worker goes on with."""
        return await self.to_decode.complete(submission(prompt, params, peer_of(self.prefill)))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def trio(model: Path) -> AsyncIterator[Trio]:
    names = ("prefill-0", "decode-0", "mixed-0")
    async with (
        running(*(worker_config(model, name) for name in names)) as (prefill, decode, mixed),
        attached(prefill) as to_prefill,
        attached(decode) as to_decode,
        attached(mixed) as to_mixed,
    ):
        yield Trio(prefill, decode, mixed, to_prefill, to_decode, to_mixed)


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def ends_idle(trio: Trio) -> AsyncIterator[None]:
    """Every test leaves nothing behind, and no hand-off of it fails."""
    yield
    await idle(trio.prefill, trio.decode, trio.mixed)
    assert trio.decode.parts.core.state.handoffs.failed == 0


def assert_same(answer: Answer, expected: CompletionOutput) -> None:
    assert answer.error is None
    assert tuple(answer.tokens) == expected.token_ids
    assert answer.finish_reason is expected.finish_reason
    for ours, theirs in zip(answer.logprobs, expected.logprobs, strict=True):
        assert ours.token_id == theirs.token_id
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_tokens_and_logprobs_are_those_of_one_engine(
    trio: Trio, oracle: Oracle, params: SamplingParams
) -> None:
    rng = random.Random(params.seed)
    prompts = [random_prompt(rng, length) for length in LENGTHS]
    before = trio.decode.parts.core.state.handoffs.completed

    handed_over = await asyncio.gather(*(trio.hand_over(p, params) for p in prompts))
    alone = await asyncio.gather(*(trio.to_mixed.complete(submission(p, params)) for p in prompts))

    for prompt, distributed, mixed in zip(prompts, handed_over, alone, strict=True):
        expected = oracle(prompt, params)
        assert_same(distributed, expected)
        assert_same(mixed, expected)
    assert trio.decode.parts.core.state.handoffs.completed - before == len(prompts)


@pytest.mark.parametrize(
    ("known_to_prefill", "known_to_decode"),
    [(0, 0), (48, 0), (0, 48), (48, 48), (88, 24), (24, 88), (90, 0), (0, 90), (89, 96)],
)
async def test_prefix_hits_on_either_side_change_no_token(
    trio: Trio, oracle: Oracle, known_to_prefill: int, known_to_decode: int
) -> None:
    prompt = random_prompt(random.Random(f"{known_to_prefill} {known_to_decode}"), 100)
    warm_up = replace(GREEDY, max_tokens=1)
    for gateway, known in ((trio.to_prefill, known_to_prefill), (trio.to_decode, known_to_decode)):
        if known:
            await gateway.complete(submission(prompt[:known], warm_up))
    handoffs = trio.decode.parts.core.state.handoffs
    before = replace(handoffs)

    answer = await trio.hand_over(prompt, GREEDY)

    assert_same(answer, oracle(prompt, GREEDY))
    here, there = known_to_decode // 8 * 8, known_to_prefill // 8 * 8
    fetched = len(prompt) - here > 8
    assert handoffs.completed - before.completed == fetched
    assert answer.cached_tokens == (max(here, there) if fetched else here)
    # What the decode worker has is not sent again.
    blocks = 13 - here // 8 if fetched else 0
    page = trio.decode.parts.built.layout.block_bytes
    assert handoffs.bytes - before.bytes == blocks * page


async def test_handed_over_prompts_are_found_again_on_both_sides(
    trio: Trio, oracle: Oracle
) -> None:
    prompt = random_prompt(random.Random("again"), 50)
    await trio.hand_over(prompt, GREEDY)

    for gateway in (trio.to_prefill, trio.to_decode):
        answer = await gateway.complete(submission(prompt, GREEDY))
        assert_same(answer, oracle(prompt, GREEDY))
        assert answer.cached_tokens == 48


async def test_a_prompt_is_looked_up_by_the_worker_that_computes_it(trio: Trio) -> None:
    """So that hits over queries is the share of computing that was saved, in each pool and both."""
    prompt = random_prompt(random.Random("looked up"), 50)

    async def hand_over() -> list[tuple[int, int]]:
        workers = (trio.prefill.parts.core, trio.decode.parts.core)
        before = [(w.stats().prefix_queries, w.stats().prefix_hits) for w in workers]
        await trio.hand_over(prompt, GREEDY)
        await idle(trio.prefill, trio.decode)
        after = [(w.stats().prefix_queries, w.stats().prefix_hits) for w in workers]
        return [(q - p, h - g) for (p, g), (q, h) in zip(before, after, strict=True)]

    assert await hand_over() == [(50, 0), (0, 0)]
    assert await hand_over() == [(0, 0), (50, 48)]  # two tokens are not worth a hand-off


async def test_different_salts_share_nothing(trio: Trio, oracle: Oracle) -> None:
    prompt = random_prompt(random.Random("salt"), 40)
    for salt in ("", "a", "b"):
        request = submission(prompt, GREEDY, peer_of(trio.prefill), cache_salt=salt)
        answer = await trio.to_decode.complete(request)
        assert_same(answer, oracle(prompt, GREEDY))
        assert answer.cached_tokens == 0


@pytest.mark.parametrize("delivered", [1, 5, 11])
async def test_a_later_attempt_goes_on_behind_what_was_delivered(
    trio: Trio, oracle: Oracle, delivered: int
) -> None:
    prompt = random_prompt(random.Random(delivered), 29)
    expected = oracle(prompt, SEEDED).token_ids
    request = submission(
        prompt, SEEDED, peer_of(trio.prefill), attempt=1, output_token_ids=expected[:delivered]
    )

    answer = await trio.to_decode.complete(request)

    assert answer.tokens == list(expected[delivered:])
    assert answer.finish_reason is FinishReason.LENGTH


async def test_a_request_may_end_with_the_first_token(trio: Trio, oracle: Oracle) -> None:
    """Its KV is still under way then, and comes to an end before its blocks are freed."""
    params = replace(GREEDY, max_tokens=1)
    prompts = [random_prompt(random.Random(f"one {n}"), 90) for n in range(4)]
    for answer, prompt in zip(
        await asyncio.gather(*(trio.hand_over(prompt, params) for prompt in prompts)),
        prompts,
        strict=True,
    ):
        assert_same(answer, oracle(prompt, params))


async def test_stop_tokens_end_handed_over_requests(trio: Trio, oracle: Oracle) -> None:
    prompt = random_prompt(random.Random("stop"), 20)
    free = oracle(prompt, SEEDED).token_ids
    stop = next(token for index, token in enumerate(free) if index >= 4 and token not in free[:4])
    params = replace(SEEDED, stop_token_ids=(stop,))

    answer = await trio.hand_over(prompt, params)

    assert answer.tokens == list(free[: free.index(stop) + 1])
    assert answer.finish_reason is FinishReason.STOP


async def test_probes_are_never_served_from_a_cache(trio: Trio, oracle: Oracle) -> None:
    prompt = random_prompt(random.Random("probe"), 40)
    await trio.hand_over(prompt, GREEDY)
    handoffs = trio.decode.parts.core.state.handoffs
    before = handoffs.completed

    request = submission(prompt, GREEDY, peer_of(trio.prefill), probe=True)
    answer = await trio.to_decode.complete(request)

    assert_same(answer, oracle(prompt, GREEDY))
    assert answer.cached_tokens == 0
    assert handoffs.completed == before + 1


async def test_the_timeline_names_what_happened_on_both_workers(trio: Trio) -> None:
    prompt = random_prompt(random.Random("timeline"), 70)
    answer = await trio.hand_over(prompt, GREEDY)
    names = answer.phase_names
    assert names[0] == "queue"
    assert [name for name in names if name in ("prefill", "transfer", "first_decode")] == [
        "prefill",
        "transfer",
        "first_decode",
    ]
    assert names[-1] == "decode"
    assert all(phase.seconds >= 0 for phase in answer.phases)


async def test_links_are_used_again(trio: Trio) -> None:
    await idle(trio.prefill, trio.decode)
    links = trio.decode.parts.links.receiving.num_idle
    assert links > 0
    for n in range(3):
        await trio.hand_over(random_prompt(random.Random(f"reuse {n}"), 30), GREEDY)
        await idle(trio.prefill, trio.decode)
    assert trio.decode.parts.links.receiving.num_idle == links
    assert trio.prefill.parts.links.sending.num_idle == links


async def test_preempted_requests_are_computed_again_here(
    model: Path, oracle: Oracle, trio: Trio
) -> None:
    """The decode worker's cache holds one of the sequences whole, but not all of them."""
    params = replace(SEEDED, max_tokens=60)
    prompts = [random_prompt(random.Random(f"preempt {n}"), 40) for n in range(3)]
    config = worker_config(model, "decode-small", num_kv_blocks=25, max_model_len=128)
    async with running(config) as (small,), attached(small) as gateway:
        answers = await asyncio.gather(
            *(gateway.complete(submission(p, params, peer_of(trio.prefill))) for p in prompts)
        )
        for prompt, answer in zip(prompts, answers, strict=True):
            assert_same(answer, oracle(prompt, params))
        await idle(small)
        assert small.parts.core.stats().preemptions > 0
        assert any("preempted" in answer.phase_names for answer in answers)
        assert small.parts.core.state.handoffs.failed == 0
