"""Many hand-offs at the same time are still hand-offs: none waits for a thread or a link."""

import asyncio
import random
from pathlib import Path

import pytest
from tests.support.workers import (
    Oracle,
    attached,
    idle,
    peer_of,
    random_prompt,
    running,
    submission,
    worker_config,
)

from twinflow.runtime.sampling_params import SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=4, seed=0, ignore_eos=True)
BURST = 72


async def test_a_burst_is_handed_over_to_the_last_request(model: Path, oracle: Oracle) -> None:
    """More requests than seats, and every seat has its link."""
    configs = [
        worker_config(model, name, max_num_seqs=64, max_num_batched_tokens=128, num_kv_blocks=400)
        for name in ("prefill-0", "decode-0")
    ]
    async with running(*configs) as (prefill, decode), attached(decode) as gateway:
        prompts = [random_prompt(random.Random(n), 20 + n % 20) for n in range(BURST)]
        requests = [submission(prompt, PARAMS, peer_of(prefill)) for prompt in prompts]

        answers = await asyncio.gather(*(gateway.complete(request) for request in requests))

        handoffs = decode.parts.core.state.handoffs
        assert (handoffs.completed, handoffs.failed) == (BURST, 0)
        for prompt, answer in zip(prompts, answers, strict=True):
            assert tuple(answer.tokens) == oracle(prompt, PARAMS).token_ids
        await idle(prefill, decode)


async def test_workers_that_fetch_from_each_other_do_not_wait_in_circles(model: Path) -> None:
    """Each is the sender of as many hand-offs as it is the receiver of."""
    configs = [
        worker_config(model, name, max_num_seqs=32, num_kv_blocks=400)
        for name in ("mixed-0", "mixed-1")
    ]
    async with (
        running(*configs) as (first, second),
        attached(first) as to_first,
        attached(second) as to_second,
    ):
        rng = random.Random(1)
        to_and_fro = [
            gateway.complete(submission(random_prompt(rng, 30), PARAMS, peer_of(other)))
            for _ in range(24)
            for gateway, other in ((to_first, second), (to_second, first))
        ]
        answers = await asyncio.gather(*to_and_fro)

        assert all(len(answer.tokens) == 4 for answer in answers)
        for worker in (first, second):
            assert worker.parts.core.state.handoffs.completed == 24
            assert worker.parts.core.state.handoffs.failed == 0
        await idle(first, second)


@pytest.mark.parametrize("decode_workers", [3])
async def test_one_prefill_worker_serves_several_decode_workers(
    model: Path, oracle: Oracle, decode_workers: int
) -> None:
    names = ["prefill-0", *(f"decode-{n}" for n in range(decode_workers))]
    async with running(*(worker_config(model, name) for name in names)) as (prefill, *decoders):
        prompt = random_prompt(random.Random(2), 60)

        async def fetch_all(decoder: int) -> None:
            async with attached(decoders[decoder]) as gateway:
                requests = [
                    submission(prompt[: 60 - n], PARAMS, peer_of(prefill), cache_salt=str(n))
                    for n in range(8)
                ]
                answers = await asyncio.gather(*(gateway.complete(r) for r in requests))
                for n, answer in enumerate(answers):
                    assert tuple(answer.tokens) == oracle(prompt[: 60 - n], PARAMS).token_ids

        await asyncio.gather(*(fetch_all(n) for n in range(decode_workers)))
        assert [d.parts.core.state.handoffs.completed for d in decoders] == [8] * decode_workers
        await idle(prefill, *decoders)
