"""Prompts that are handed over to a worker that guesses end in the tokens of one that does not."""

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
from twinflow.runtime.speculative.account import SpeculationAccount
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.speculative.layer_parallel.config import LayerParallelConfig

SPECULATION = SpeculativeConfig(method="token_recycling", num_speculative_tokens=3, adaptive=False)
PARAMS = [
    SamplingParams(temperature=0, max_tokens=20, seed=0, ignore_eos=True),
    SamplingParams(temperature=0.8, top_p=0.9, max_tokens=20, seed=7, frequency_penalty=0.2),
]


@pytest.mark.asyncio
async def test_guessing_changes_no_token_of_a_prompt_that_came_from_elsewhere(
    model: Path, oracle: Oracle
) -> None:
    rng = random.Random(4)
    asks = [(random_prompt(rng, length), p) for length in (9, 40, 75) for p in PARAMS]
    settings = {"speculative_config": SPECULATION, "max_num_seqs": 8}
    names = ("prefill-0", "decode-0")
    configs = (worker_config(model, name, **settings) for name in names)
    async with running(*configs) as (prefill, decode), attached(decode) as gateway:
        peer = peer_of(prefill)
        for _ in range(2):  # what the first round said is proposed in the second
            answers = await asyncio.gather(
                *(gateway.complete(submission(prompt, params, peer)) for prompt, params in asks)
            )
            for (prompt, params), answer in zip(asks, answers, strict=True):
                assert answer.error is None
                assert tuple(answer.tokens) == oracle(prompt, params).token_ids
        account = await decode.parts.core.loop.call(lambda engine: engine.counters.speculation)
        assert decode.parts.core.state.handoffs.completed >= len(asks)
        assert decode.parts.core.state.handoffs.failed == 0
        assert account.draft_tokens > account.accepted_tokens > 0
        await idle(prefill, decode)


@pytest.mark.asyncio
async def test_a_model_drafts_as_well_for_prompts_from_elsewhere(
    model: Path, oracle: Oracle
) -> None:
    """Its KV is not handed over but computed on arrival, exactly: the same proposals come true."""
    easyspec = SpeculativeConfig(
        method="easyspec",
        model=str(model),
        num_speculative_tokens=3,
        adaptive=False,
        layer_parallel=LayerParallelConfig(size=2, first=0, last=0),
    )
    rng = random.Random(5)
    asks = [(random_prompt(rng, length), p) for length in (9, 40, 75) for p in PARAMS]
    accounts: list[SpeculationAccount] = []
    for names in (("prefill-0", "decode-0"), ("mixed-0",)):
        settings = {"speculative_config": easyspec, "max_num_seqs": 8}
        configs = (worker_config(model, name, **settings) for name in names)
        async with running(*configs) as workers, attached(workers[-1]) as gateway:
            peer = peer_of(workers[0]) if len(workers) > 1 else None
            for prompt, params in asks:
                answer = await gateway.complete(submission(prompt, params, peer))
                assert tuple(answer.tokens) == oracle(prompt, params).token_ids
            account = await workers[-1].parts.core.loop.call(
                lambda engine: engine.counters.speculation
            )
            accounts.append(account)
            await idle(*workers)
    handed_over, whole = accounts
    assert handed_over == whole
    assert whole.draft_tokens > whole.accepted_tokens > 0
