"""A model drafts as well for prompts from elsewhere, wherever its KV of them comes from."""

import random
from dataclasses import replace
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
from twinflow.workers.core import DraftArrivals
from twinflow.workers.server import WorkerServer

PARAMS = [
    SamplingParams(temperature=0, max_tokens=20, seed=0, ignore_eos=True),
    SamplingParams(temperature=0.8, top_p=0.9, max_tokens=20, seed=7, frequency_penalty=0.2),
]


def rest_until_drafts_have_come(worker: WorkerServer) -> None:
    """Have an engine decode nobody whose KV of the drafter is still to come, however long that is.

    What is proposed to whom then depends on no race between hand-overs and steps.
    """
    engine, kv = worker.parts.built.engine, worker.parts.built.draft_kv
    assert kv is not None
    step, come = engine.step, set[str]()

    def step_if_all_have_come() -> bool:
        running = {request.request_id for request in engine.queues.running}
        come.update(name for name in running if kv.num_brought(name) and not kv.awaits(name))
        return running <= come and step()

    engine.step = step_if_all_have_come  # type: ignore[method-assign]


async def drafted(
    model: Path, oracle: Oracle, names: tuple[str, ...], config: SpeculativeConfig
) -> tuple[SpeculationAccount, DraftArrivals | None]:
    """Serve prompts that the last of the workers decodes; what it guessed, and what came to it.

    There the drafter reads each of them in one pass: it proposes something from the first step on.
    For others it takes several.
    """
    rng = random.Random(5)
    asks = [(random_prompt(rng, length), p) for length in (9, 40, 75) for p in PARAMS]
    settings = {"speculative_config": config, "max_num_seqs": 8}
    configs = [
        worker_config(
            model, name, max_num_batched_tokens=80 if name == names[-1] else 32, **settings
        )
        for name in names
    ]
    async with running(*configs) as workers, attached(workers[-1]) as gateway:
        if config.draft_kv == "transfer":
            rest_until_drafts_have_come(workers[-1])
        peer = peer_of(workers[0]) if len(workers) > 1 else None
        for prompt, params in asks:
            answer = await gateway.complete(submission(prompt, params, peer))
            assert tuple(answer.tokens) == oracle(prompt, params).token_ids
        parts = workers[-1].parts
        account = await parts.core.loop.call(lambda engine: engine.counters.speculation)
        await idle(*workers)
        for worker in workers:
            kv = worker.parts.built.draft_kv
            assert kv is not None
            assert (kv.under_way, kv.pool.num_idle) == (0, kv.pool.num_blocks)
        drafts = parts.receiver.drafts
        return account, None if drafts is None else drafts.arrivals


@pytest.mark.asyncio
async def test_as_much_is_accepted_of_what_is_drafted_for_prompts_from_elsewhere(
    model: Path, oracle: Oracle
) -> None:
    """At every place of a proposal just as much, be KV computed on arrival or handed over: it is
    exact, and a drafter that is often wrong proposes the same."""
    easyspec = SpeculativeConfig(
        method="easyspec",
        model=str(model),
        num_speculative_tokens=3,
        adaptive=False,
        layer_parallel=LayerParallelConfig(size=2, first=0, last=0),
        draft_kv="rebuild",
    )
    here, _ = await drafted(model, oracle, ("mixed-0",), easyspec)
    assert here.draft_tokens > here.accepted_tokens > 0
    apart = ("prefill-0", "decode-0")
    assert await drafted(model, oracle, apart, easyspec) == (here, DraftArrivals(rebuilt=6))
    transfer = replace(easyspec, draft_kv="transfer")
    assert await drafted(model, oracle, apart, transfer) == (here, DraftArrivals(handed_over=6))


@pytest.mark.asyncio
async def test_kv_that_does_not_come_is_computed(model: Path, oracle: Oracle) -> None:
    config = SpeculativeConfig(
        method="draft_model",
        model=str(model),
        num_speculative_tokens=1,
        adaptive=False,
        draft_kv="transfer",
    )
    other = replace(config, method="ngram", model=None, draft_kv="auto")
    workers = (
        worker_config(model, "prefill-0", speculative_config=other),
        worker_config(model, "decode-0", speculative_config=config),
    )
    prompt = random_prompt(random.Random(8), 40)
    async with running(*workers) as (prefill, decode), attached(decode) as gateway:
        answer = await gateway.complete(submission(prompt, PARAMS[0], peer_of(prefill)))
        assert tuple(answer.tokens) == oracle(prompt, PARAMS[0]).token_ids
        await idle(prefill, decode)
        assert decode.parts.receiver.drafts is not None
        assert decode.parts.receiver.drafts.arrivals == DraftArrivals(failed=1)
        assert decode.parts.core.state.handoffs.failed == 0
        assert decode.parts.core.stats().speculation.draft_kv.failed == 1
