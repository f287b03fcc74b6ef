"""An engine over ranks in processes generates what an engine without ranks does."""

import queue
import random
import time
from pathlib import Path

import msgspec
import pytest
import torch
from tests.support.child_processes import ANSWER_S
from tests.support.engines import Collected
from tests.support.rank_workers import KV_ORDER, processes, rank_configs
from torch import Tensor

from twinflow.runtime.build import build_engine
from twinflow.runtime.engine import Engine
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.request import Request
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.speculative.trees.config import TreeConfig
from twinflow.workers.config import WorkerConfig
from twinflow.workers.options import engine_options
from twinflow.workers.ranks.build import BuiltLeader, build_leader
from twinflow.workers.ranks.config import TeamConfig

pytestmark = pytest.mark.slow

# Too few blocks for all at once: requests wait, and some are preempted.
SETTINGS = {"num_kv_blocks": 61, "max_num_seqs": 6, "max_model_len": 160}
MAX_TOKENS = 64


def generate(engine: Engine, count: int = 10, max_tokens: int = MAX_TOKENS) -> Collected:
    """Requests that come while others run, some of them with a prompt that was seen before."""
    rng = random.Random(11)
    common = [rng.randrange(3, 300) for _ in range(40)]
    collected, number = Collected(), 0
    for step in range(3000):
        if step % 5 == 0 and number < count:
            length = rng.randrange(1, 60)
            prompt = [rng.randrange(3, 300) for _ in range(length)]
            prompt = common + prompt[:20] if number % 3 == 2 else prompt
            params = SamplingParams(
                temperature=0, max_tokens=max_tokens, ignore_eos=True, logprobs=0
            )
            engine.add_request(
                Request(request_id=f"r{number}", prompt_token_ids=prompt, params=params)
            )
            number += 1
        engine.step()
        collected.take(engine)
        engine.check_integrity()
        if number == count and not engine.runnable:
            return collected
    raise AssertionError("the engine does not come to an end")


def heads_of(cache: KVCache, first: int, end: int, num_heads: int) -> Tensor:
    """Keys and values of some heads of all blocks, from a cache of one part with all heads."""
    whole = cache.part(0)
    columns = [*range(first, end), *range(num_heads + first, num_heads + end)]
    return whole[:, :, columns]


def kv_of_followers(leader: BuiltLeader, size: int) -> dict[int, bytes]:
    """The KV caches of the other ranks, between two steps."""
    reports: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
    leader.leader.on_report(KV_ORDER, lambda rank, body: reports.put((rank, body)))
    leader.leader.order(KV_ORDER, b"")
    return dict(reports.get(timeout=ANSWER_S) for _ in range(size - 1))


@pytest.mark.parametrize("size", [2, 4])
def test_greedy_tokens_and_kv_are_those_of_one_rank(model: Path, size: int) -> None:
    configs = rank_configs(model, size, **SETTINGS)
    alone = build_engine(engine_options(configs[0]), clock=time.monotonic)
    expected = generate(alone.engine)
    assert alone.engine.counters.preemptions > 0
    with processes(*configs[1:]) as followers:
        made = lead(configs[0])
        try:
            found = generate(made.built.engine)
            caches = kv_of_followers(made, size)
            assert found.failures == expected.failures == {}
            assert found.tokens == expected.tokens
            assert {len(tokens) for tokens in found.tokens.values()} == {MAX_TOKENS}
            own = made.built.cache
            for rank in range(size):
                data = own.data if rank == 0 else _tensor(caches[rank], own.data)
                first, end = rank * 2 // size, rank * 2 // size + max(1, 2 // size)
                share = heads_of(alone.cache, first, end, 2).reshape(len(data), -1)
                assert share.abs().max() > 0.1
                torch.testing.assert_close(data, share, atol=1e-4, rtol=1e-4)
            if size == 4:  # neighbours hold the same head, and the same bits of it
                assert torch.equal(own.data, _tensor(caches[1], own.data))
                assert caches[2] == caches[3]
        finally:
            made.leader.close()
        assert [follower.line() for follower in followers] == ["ready"] * (size - 1)
        assert [follower.line() for follower in followers] == ["ended"] * (size - 1)
        assert [follower.wait() for follower in followers] == [0] * (size - 1)


SPECULATIONS = {
    "chains": SpeculativeConfig(method="ngram", num_speculative_tokens=4, adaptive=False),
    "trees": SpeculativeConfig(
        method="token_recycling",
        num_speculative_tokens=4,
        tree=TreeConfig(width=2, depth=3),
        adaptive=False,
    ),
}


@pytest.mark.parametrize("shape", SPECULATIONS)
def test_tokens_on_two_ranks_stay_the_same_with_proposals(model: Path, shape: str) -> None:
    configs = rank_configs(model, 2, **SETTINGS)
    alone = build_engine(engine_options(configs[0]), clock=time.monotonic)
    expected = generate(alone.engine, 4, 20)
    speculation = SPECULATIONS[shape]
    guessing = [msgspec.structs.replace(one, speculative_config=speculation) for one in configs]
    with processes(*guessing[1:]):
        made = lead(guessing[0])
        try:
            found = generate(made.built.engine, 4, 20)
        finally:
            made.leader.close()
    assert found.tokens == expected.tokens
    account = made.built.engine.counters.speculation
    assert account.draft_tokens > account.accepted_tokens > 0


def lead(config: WorkerConfig) -> BuiltLeader:
    return build_leader(engine_options(config), TeamConfig.of(config), clock=time.monotonic)


def _tensor(data: bytes, like: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=like.dtype).view_as(like)
