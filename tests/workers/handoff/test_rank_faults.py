"""One route of a hand-off fails: all of it is given up and recomputed, and nothing else suffers."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import pytest_asyncio
from tests.support.rank_pools import RankedWorker, all_idle, pool_configs, ranked
from tests.support.rank_workers import write_ranked_checkpoint
from tests.support.worker_proxy import between
from tests.support.workers import (
    Answer,
    Gateway,
    attached,
    eventually,
    peer_of,
    random_prompt,
    submission,
)

from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.llm import LLM
from twinflow.runtime.sampling_params import SamplingParams

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

PARAMS = SamplingParams(temperature=0.8, max_tokens=8, seed=5, ignore_eos=True)
# How long the workers of this file wait for one another.
TIMEOUT_S = 4.0


@dataclass
class Pools:
    """A prefill worker of two ranks, a decode worker of two ranks and one of one rank."""

    prefill: RankedWorker
    decode: RankedWorker
    bystander: RankedWorker
    to_decode: Gateway
    to_bystander: Gateway
    alone: LLM

    async def fetch(self, seed: object, peer: pb.Peer | None = None) -> Answer:
        """Complete a prompt of several chunks and check every token of it."""
        return await self._fetch(self.to_decode, seed, peer or peer_of(self.prefill.leader))

    async def fetch_beside(self, seed: object) -> Answer:
        """The same at the decode worker that nothing happens to."""
        return await self._fetch(self.to_bystander, seed, peer_of(self.prefill.leader))

    async def _fetch(self, gateway: Gateway, seed: object, peer: pb.Peer) -> Answer:
        prompt = random_prompt(random.Random(str(seed)), 90)
        answer = await gateway.complete(submission(prompt, PARAMS, peer))
        expected = self.alone.generate([prompt], PARAMS, use_tqdm=False)[0].outputs[0]
        assert answer.error is None
        assert tuple(answer.tokens) == expected.token_ids
        return answer


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def workers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pools]:
    model = write_ranked_checkpoint(tmp_path_factory.mktemp("ranked"))
    alone = LLM(model, dtype="float32", max_model_len=256, num_kv_blocks=64, block_size=8)
    times = {"kv_transfer_timeout_s": TIMEOUT_S, "lease_s": TIMEOUT_S, "kv_parts": 2}
    async with (
        ranked(
            pool_configs(model, "prefill-0", 2, **times),
            pool_configs(model, "decode-0", 2, **times),
            pool_configs(model, "decode-1", 1, **times),
        ) as (prefill, decode, bystander),
        attached(decode.leader) as to_decode,
        attached(bystander.leader) as to_bystander,
    ):
        yield Pools(prefill, decode, bystander, to_decode, to_bystander, alone)


@pytest_asyncio.fixture(loop_scope="module")
async def pools(workers: Pools) -> AsyncIterator[Pools]:
    """Every test leaves nothing behind on any rank, and the next hand-off works."""
    yield workers
    await all_idle(workers.prefill, workers.decode, workers.bystander)
    handoffs = workers.decode.leader.parts.core.state.handoffs
    completed = handoffs.completed
    await workers.fetch(f"afterwards {random.random()}")
    assert handoffs.completed == completed + 1
    assert workers.bystander.leader.parts.core.state.handoffs.failed == 0


@asynccontextmanager
async def meddling(pools: Pools, **hooks: Any) -> AsyncIterator[pb.Peer]:
    """The prefill worker, with somebody between its rank 1 and who asks that rank."""
    peer = peer_of(pools.prefill.leader)
    async with between(peer.ranks[1].address, **hooks) as address:
        peer.ranks[1].address = address
        yield peer


async def assert_recomputed(pools: Pools, peer: pb.Peer, *, refused: int = 0) -> None:
    """A hand-off fails, its tokens are right, and one beside it goes well."""
    handoffs = pools.decode.leader.parts.core.state.handoffs
    before = replace(handoffs)
    beside = pools.bystander.leader.parts.core.state.handoffs
    completed = beside.completed
    answer, _ = await asyncio.gather(
        pools.fetch(peer.ranks[1].address, peer), pools.fetch_beside(peer.ranks[1].address)
    )
    assert "recompute" in answer.phase_names
    assert handoffs.failed == before.failed + 1
    assert handoffs.completed == before.completed
    assert handoffs.digests_refused == before.digests_refused + refused
    assert beside.completed == completed + 1


def in_opening(change: Callable[[pb.TransferOpen], None]) -> Any:
    """A hook that changes what a rank asks for."""

    async def hook(message: pb.TransferRequest) -> AsyncIterator[pb.TransferRequest]:
        if message.HasField("open"):
            change(message.open)
        yield message

    return hook


def in_ready(change: Callable[[pb.UnitReady], None]) -> Any:
    """A hook that changes what a rank announces."""

    async def hook(message: pb.TransferResponse) -> AsyncIterator[pb.TransferResponse]:
        if message.HasField("ready"):
            change(message.ready)
        yield message

    return hook


async def never_posted(message: pb.TransferRequest) -> AsyncIterator[pb.TransferRequest]:
    if not message.HasField("posted"):
        yield message


async def silence(message: pb.TransferResponse) -> AsyncIterator[pb.TransferResponse]:
    await asyncio.sleep(3 * TIMEOUT_S)
    yield message


def _flip(ready: pb.UnitReady) -> None:
    ready.digests[0] ^= 1


def _grow(ready: pb.UnitReady) -> None:
    ready.bytes_per_block += 1


WRONG: dict[str, tuple[dict[str, Any], int]] = {
    "a wrong digest": ({"to_receiver": in_ready(_flip)}, 1),
    "another size": ({"to_receiver": in_ready(_grow)}, 0),
    "silence": ({"to_receiver": silence}, 0),
    "nothing posted": ({"to_sender": never_posted}, 0),
    "another life": ({"to_sender": in_opening(lambda o: setattr(o, "sender_epoch", 9))}, 0),
    "another layout": ({"to_sender": in_opening(lambda o: setattr(o, "kv_layout", "x"))}, 0),
    "another transfer": ({"to_sender": in_opening(lambda o: setattr(o, "transfer_id", "x"))}, 0),
    "foreign parts": ({"to_sender": in_opening(lambda o: o.parts.append("heads 0-0"))}, 0),
    "other blocks": ({"to_sender": in_opening(lambda o: setattr(o, "num_blocks", 5))}, 0),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_route_that_goes_wrong_fails_the_whole_hand_off(pools: Pools, wrong: str) -> None:
    hooks, refused = WRONG[wrong]
    async with meddling(pools, **hooks) as peer:
        await assert_recomputed(pools, peer, refused=refused)


async def test_a_page_that_changed_on_another_rank_is_refused(pools: Pools) -> None:
    """The damage comes when the digests are taken, and before anything is sent."""
    damaged: list[int] = []
    follower = pools.prefill.followers[0].parts

    async def damage(message: pb.TransferRequest) -> AsyncIterator[pb.TransferRequest]:
        if message.HasField("posted") and not damaged:
            for held in follower.handoffs.sender._held.values():
                if len(held.conversations) == 1:
                    damaged.append(held.blocks[0])
                    page = follower.built.runner.kv_cache.page(held.blocks[0], 0, 2, 0)
                    page[3] ^= 0x04
        yield message

    handoffs = pools.decode.leader.parts.core.state.handoffs
    before = replace(handoffs)
    async with meddling(pools, to_sender=damage) as peer:
        await pools.fetch("damage", peer)
    assert damaged
    assert handoffs.failed == before.failed + 1
    assert handoffs.digests_refused == before.digests_refused + 1


async def test_a_link_that_breaks_between_two_other_ranks_is_the_end_of_the_hand_off(
    pools: Pools,
) -> None:
    receiving = pools.decode.followers[0].parts.links.receiving

    async def cut(message: pb.TransferRequest) -> AsyncIterator[pb.TransferRequest]:
        if message.HasField("posted"):
            for lease in list(receiving._leased.values()):
                if lease._link is not None:
                    await asyncio.to_thread(lease._link._group.abort)
        yield message

    await pools.fetch("no link is fresh")
    await all_idle(pools.prefill, pools.decode)
    async with meddling(pools, to_sender=cut) as peer:
        handoffs = pools.decode.leader.parts.core.state.handoffs
        before = replace(handoffs)
        await pools.fetch("cut", peer)
        # An idle link may die at any time: one more try; that was cut, too.
        assert handoffs.failed == before.failed + 1


async def test_a_dead_idle_link_of_another_rank_costs_a_second_try(pools: Pools) -> None:
    await pools.fetch("make links")
    await all_idle(pools.prefill, pools.decode)
    handoffs = pools.decode.leader.parts.core.state.handoffs
    before = replace(handoffs)
    sending = pools.prefill.followers[0].parts.links.sending
    assert sending.num_idle > 0
    for link in sending._take_idle_where(lambda peer: True):
        await asyncio.to_thread(link.close)

    await pools.fetch("dead link")

    assert handoffs.completed == before.completed + 1
    assert handoffs.failed == before.failed


async def test_an_abort_ends_the_routes_of_all_ranks(pools: Pools) -> None:
    """While the second rank's route waits, the request is given up."""
    reached = asyncio.Event()

    async def wait(message: pb.TransferResponse) -> AsyncIterator[pb.TransferResponse]:
        if message.HasField("ready"):
            reached.set()
            await asyncio.sleep(TIMEOUT_S)
        yield message

    async with meddling(pools, to_receiver=wait) as peer:
        request = submission(random_prompt(random.Random("abort"), 90), PARAMS, peer)
        await pools.to_decode.submit(request)
        await asyncio.wait_for(reached.wait(), 30)
        await pools.to_decode.abort(request)
        await eventually(
            lambda: not any(pools.decode.holdings().values()), lambda: str(pools.decode.holdings())
        )


async def test_workers_that_cut_kv_differently_hand_nothing_over(pools: Pools) -> None:
    """Both name what they have."""
    model = pools.prefill.leader.config.model
    async with (
        ranked(pool_configs(model, "decode-2", 1, kv_parts=1)) as (other,),
        attached(other.leader) as gateway,
    ):
        prompt = random_prompt(random.Random("cuts"), 30)
        peer = peer_of(pools.prefill.leader)
        answer = await gateway.complete(submission(prompt, PARAMS, peer, probe=True))
        assert "'heads 0-1'" in str(answer.error)
        assert "['heads 0-0', 'heads 1-1']" in str(answer.error)
