"""Latents of prefill workers, which hold all of them, end as those of ranks that share them.

The decode worker computes every prompt once more, alone: what it generates then is what must come
of a hand-off, whatever its ranks share and however many the prefill worker has.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.support.checkpoints import small_config, write_checkpoint
from tests.support.rank_pools import RankedWorker, all_idle, pool_configs, ranked
from tests.support.workers import Answer, Gateway, attached, peer_of, random_prompt, submission

from twinflow.parallel.latent.transforms.file import StoredTransform, TransformCard
from twinflow.parallel.latent.transforms.fitting import plain_transform
from twinflow.parallel.latent.transforms.registry import create_transform_kind
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.checkpoint.weights import Checkpoint
from twinflow.runtime.llm import LLM
from twinflow.runtime.sampling_params import SamplingParams

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

PARAMS = SamplingParams(temperature=0, max_tokens=6, seed=0, ignore_eos=True, logprobs=1)
# Of blocks of 8 tokens: shorter than the blocks of all ranks, at their ends, and across many.
LENGTHS = (2, 9, 32, 81)
SENDERS = (1, 2, 4)
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "replicated-1": (1, {}),
    "replicated-2": (2, {}),
    "replicated-4": (4, {}),
    "dcp-2": (2, {"mla_parallel": "dcp", "mla_shards": 2}),
    "dcp-4": (4, {"mla_parallel": "dcp", "mla_shards": 4}),
    "dcp-2-of-4": (4, {"mla_parallel": "dcp", "mla_shards": 2}),
    "tpla-1": (1, {"mla_parallel": "tpla", "mla_shards": 1}),
    "tpla-2": (2, {"mla_parallel": "tpla", "mla_shards": 2, "tpla_transform": "hadamard"}),
    "tpla-4": (4, {"mla_parallel": "tpla", "mla_shards": 4}),
    "joined-2-of-4": (4, {"mla_parallel": "tpla", "mla_shards": 2, "tpla_transform": "exact"}),
}


@dataclass
class Pools:
    """A decode worker, a session to it, and prefill workers by their numbers of ranks."""

    kind: str
    decode: RankedWorker
    gateway: Gateway
    prefill: dict[int, RankedWorker]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config("DeepseekV2ForCausalLM", num_heads=8)
    return write_checkpoint(tmp_path_factory.mktemp("latent"), config)


def write_exact(model: Path, shards: int) -> str:
    """The file of a transform with which ranks add up their scores in every layer."""
    config, kind = load_model_config(model), create_transform_kind("none")
    assert config.latent is not None
    card = TransformCard(
        model=Checkpoint.open(model).fingerprint,
        kind=kind.name,
        shards=shards,
        common=0,
        layers=config.num_layers,
        width=config.latent.kv_rank,
        exact_layers=tuple(range(config.num_layers)),
    )
    path = model / "exact.safetensors"
    StoredTransform(card, plain_transform(kind, card.layers, card.width)).write(path)
    return str(path)


@pytest.fixture(scope="module")
def alone(model: Path) -> LLM:
    return LLM(model, dtype="float32", max_model_len=256, num_kv_blocks=64, block_size=8)


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=LAYOUTS)
async def pools(request: pytest.FixtureRequest, model: Path) -> AsyncIterator[Pools]:
    receivers, layout = LAYOUTS[request.param]
    if layout.get("tpla_transform") == "exact":
        layout = layout | {"tpla_transform": write_exact(model, layout["mla_shards"])}
    settings: dict[str, Any] = {"kv_parts": 4, **layout}
    sending = [pool_configs(model, f"prefill-{size}", size, **settings) for size in SENDERS]
    decoding = pool_configs(model, "decode-0", receivers, **settings)
    async with AsyncExitStack() as stack:
        decode, *prefill = await stack.enter_async_context(ranked(decoding, *sending))
        gateway = await stack.enter_async_context(attached(decode.leader))
        by_size = dict(zip(SENDERS, prefill, strict=True))
        yield Pools(request.param.partition("-")[0], decode, gateway, by_size)


@pytest.mark.parametrize("senders", SENDERS)
async def test_tokens_are_those_of_the_decode_worker_alone(
    pools: Pools, alone: LLM, senders: int
) -> None:
    rng = random.Random(senders)
    prompts = [random_prompt(rng, length) for length in LENGTHS]
    prefill = pools.prefill[senders]
    handoffs = pools.decode.leader.parts.core.state.handoffs
    completed = handoffs.completed

    async def complete(prompt: list[int], **changes: Any) -> Answer:
        return await pools.gateway.complete(submission(prompt, PARAMS, **changes))

    peer = peer_of(prefill.leader)
    handed_over = await asyncio.gather(*(complete(prompt, prefill=peer) for prompt in prompts))
    colocated = await asyncio.gather(*(complete(prompt, cache_salt="own") for prompt in prompts))

    assert handoffs.completed - completed == len(prompts)
    assert handoffs.failed == 0
    for prompt, ours, theirs in zip(prompts, handed_over, colocated, strict=True):
        assert ours.error is None
        assert ours.tokens == theirs.tokens
        for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        if pools.kind != "tpla":
            exact = alone.generate([prompt], PARAMS, use_tqdm=False)[0].outputs[0]
            assert tuple(ours.tokens) == exact.token_ids
    await all_idle(pools.decode, prefill)


@pytest.mark.parametrize(("known_here", "known_there"), [(48, 0), (64, 80)])
async def test_prefix_hits_on_either_side_change_no_token(
    pools: Pools, known_here: int, known_there: int
) -> None:
    prompt = random_prompt(random.Random(f"{known_here} {known_there}"), 121)
    prefill = pools.prefill[2]
    warm_up = SamplingParams(temperature=0, max_tokens=1, seed=0)
    if known_there:
        async with attached(prefill.leader) as to_prefill:
            await to_prefill.complete(submission(prompt[:known_there], warm_up))
    if known_here:
        await pools.gateway.complete(submission(prompt[:known_here], warm_up))

    request = submission(prompt, PARAMS, peer_of(prefill.leader))
    answer = await pools.gateway.complete(request)

    own = await pools.gateway.complete(submission(prompt, PARAMS, cache_salt="own"))
    assert answer.tokens == own.tokens
    assert pools.decode.leader.parts.core.state.handoffs.failed == 0
    await all_idle(pools.decode, prefill)
