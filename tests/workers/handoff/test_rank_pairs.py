"""Workers of different numbers of ranks hand over KV that ends in the tokens of one engine."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from tests.support.rank_pools import RankedWorker, all_idle, pool_configs, ranked
from tests.support.rank_workers import write_ranked_checkpoint
from tests.support.workers import (
    Answer,
    Gateway,
    attached,
    peer_of,
    random_prompt,
    submission,
)

from twinflow.runtime.llm import LLM
from twinflow.runtime.outputs import CompletionOutput
from twinflow.runtime.sampling_params import SamplingParams

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

GREEDY = SamplingParams(temperature=0, max_tokens=10, seed=0, ignore_eos=True, logprobs=1)
SEEDED = SamplingParams(temperature=0.9, top_k=40, max_tokens=10, seed=77, ignore_eos=True)
# Of blocks of 8 tokens and chunks of 32: within a block, at its end, one over, many chunks.
LENGTHS = (2, 8, 9, 33, 64, 150)
PAIRS = [(1, 2), (2, 1), (2, 2), (1, 4), (4, 1), (4, 2), (2, 4), (4, 4)]


@dataclass
class Pools:
    """A prefill and a decode worker, a session to each, and an engine without ranks."""

    prefill: RankedWorker
    decode: RankedWorker
    to_prefill: Gateway
    to_decode: Gateway
    alone: LLM

    async def hand_over(self, prompt: list[int], params: SamplingParams) -> Answer:
        """Complete a prompt that the prefill worker computes and the decode worker goes on with."""
        peer = peer_of(self.prefill.leader)
        return await self.to_decode.complete(submission(prompt, params, peer))

    def expected(self, prompt: list[int], params: SamplingParams) -> CompletionOutput:
        """What the engine without ranks says."""
        return self.alone.generate([prompt], params, use_tqdm=False)[0].outputs[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of eight heads and two KV heads: four ranks hold each KV head twice."""
    return write_ranked_checkpoint(tmp_path_factory.mktemp("ranked"))


@pytest.fixture(scope="module")
def alone(model: Path) -> LLM:
    return LLM(model, dtype="float32", max_model_len=256, num_kv_blocks=64, block_size=8)


@pytest_asyncio.fixture(
    loop_scope="module",
    scope="module",
    params=PAIRS,
    ids=[f"{senders}-to-{receivers}" for senders, receivers in PAIRS],
)
async def pools(request: pytest.FixtureRequest, model: Path, alone: LLM) -> AsyncIterator[Pools]:
    senders, receivers = request.param
    before = psutil.Process().num_fds()
    parts = max(senders, receivers)
    async with (
        ranked(
            pool_configs(model, "prefill-0", senders, kv_parts=parts),
            pool_configs(model, "decode-0", receivers, kv_parts=parts),
        ) as (prefill, decode),
        attached(prefill.leader) as to_prefill,
        attached(decode.leader) as to_decode,
    ):
        yield Pools(prefill, decode, to_prefill, to_decode, alone)
    # gRPC and the event loop keep a few for ever.
    assert psutil.Process().num_fds() <= before + 8


def assert_same(answer: Answer, expected: CompletionOutput) -> None:
    assert answer.error is None
    assert tuple(answer.tokens) == expected.token_ids
    for ours, theirs in zip(answer.logprobs, expected.logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_tokens_are_those_of_one_engine(pools: Pools, params: SamplingParams) -> None:
    rng = random.Random(params.seed)
    prompts = [random_prompt(rng, length) for length in LENGTHS]
    handoffs = pools.decode.leader.parts.core.state.handoffs
    completed, num_bytes = handoffs.completed, handoffs.bytes

    answers = await asyncio.gather(*(pools.hand_over(prompt, params) for prompt in prompts))

    for prompt, answer in zip(prompts, answers, strict=True):
        assert_same(answer, pools.expected(prompt, params))
    assert handoffs.completed - completed == len(prompts)
    assert handoffs.failed == 0
    blocks = sum(-(-length // 8) for length in LENGTHS)
    on_each_rank = pools.decode.leader.parts.built.cache.layout.block_bytes
    ranks = 1 + len(pools.decode.followers)
    assert handoffs.bytes - num_bytes == blocks * on_each_rank * ranks
    await all_idle(pools.prefill, pools.decode)


@pytest.mark.parametrize(("known_to_prefill", "known_to_decode"), [(48, 0), (0, 48), (88, 24)])
async def test_prefix_hits_on_either_side_change_no_token(
    pools: Pools, known_to_prefill: int, known_to_decode: int
) -> None:
    prompt = random_prompt(random.Random(f"{known_to_prefill} {known_to_decode}"), 100)
    warm_up = SamplingParams(temperature=0, max_tokens=1, seed=0)
    for gateway, known in (
        (pools.to_prefill, known_to_prefill),
        (pools.to_decode, known_to_decode),
    ):
        if known:
            await gateway.complete(submission(prompt[:known], warm_up))

    answer = await pools.hand_over(prompt, GREEDY)

    assert_same(answer, pools.expected(prompt, GREEDY))
    assert answer.cached_tokens == max(known_to_prefill, known_to_decode) // 8 * 8
    await all_idle(pools.prefill, pools.decode)


async def test_links_are_used_again_on_all_ranks(pools: Pools) -> None:
    def links() -> list[int]:
        return [
            *(links.sending.num_idle for links in pools.prefill.links()),
            *(links.receiving.num_idle for links in pools.decode.links()),
        ]

    await pools.hand_over(random_prompt(random.Random("links"), 30), GREEDY)
    await all_idle(pools.prefill, pools.decode)
    before = links()
    for n in range(3):
        await pools.hand_over(random_prompt(random.Random(f"links {n}"), 30), GREEDY)
        await all_idle(pools.prefill, pools.decode)
    assert links() == before
    assert sum(before) > 0
