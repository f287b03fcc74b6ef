"""Whatever goes wrong in a hand-off, the prompt is computed here and the tokens are the same."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.support.halting import kept_busy
from tests.support.worker_proxy import between
from tests.support.workers import (
    Answer,
    Gateway,
    Oracle,
    attached,
    eventually,
    forget_idle_links,
    holdings,
    idle,
    peer_of,
    random_prompt,
    running,
    submission,
    worker_config,
)

from twinflow.protos.errors import HandoffError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.workers.server import WorkerServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARAMS = SamplingParams(temperature=0.8, max_tokens=10, seed=5, ignore_eos=True, logprobs=1)
# How long the workers of this file wait for one another.
TIMEOUT_S = 1.5


@dataclass
class Pair:
    """A prefill and a decode worker, and a session to the latter."""

    prefill: WorkerServer
    decode: WorkerServer
    gateway: Gateway
    oracle: Oracle

    async def fetch(self, seed: object, address: str = "", **changes: Any) -> Answer:
        """Complete a prompt of several chunks through a proxy, and check every token of it."""
        prompt = random_prompt(random.Random(str(seed)), 90)
        peer = peer_of(self.prefill, **({"address": address} if address else {}))
        answer = await self.gateway.complete(submission(prompt, PARAMS, peer, **changes))
        if not changes.get("probe"):
            expected = self.oracle(prompt, PARAMS)
            assert answer.error is None
            assert tuple(answer.tokens) == expected.token_ids
            assert [entry.logprob for entry in answer.logprobs] == pytest.approx(
                [entry.logprob for entry in expected.logprobs], abs=1e-4
            )
        return answer


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def workers(model: Path, oracle: Oracle) -> AsyncIterator[Pair]:
    configs = [
        worker_config(model, name, kv_transfer_timeout_s=TIMEOUT_S, lease_s=TIMEOUT_S)
        for name in ("prefill-0", "decode-0")
    ]
    async with running(*configs) as (prefill, decode), attached(decode) as gateway:
        yield Pair(prefill, decode, gateway, oracle)


@pytest_asyncio.fixture(loop_scope="module")
async def pair(workers: Pair) -> AsyncIterator[Pair]:
    """The pair; every test leaves nothing behind, and the next hand-off works."""
    yield workers
    await idle(workers.prefill, workers.decode)
    handoffs = workers.decode.parts.core.state.handoffs
    completed = handoffs.completed
    await workers.fetch(f"afterwards {random.random()}")
    assert handoffs.completed == completed + 1


async def assert_recomputed(pair: Pair, address: str, *, refused: int = 0) -> Answer:
    """A hand-off through `address` fails; its tokens do not."""
    handoffs = pair.decode.parts.core.state.handoffs
    before = replace(handoffs)
    answer = await pair.fetch(address, address)
    assert handoffs.failed == before.failed + 1
    assert handoffs.completed == before.completed
    assert handoffs.digests_refused == before.digests_refused + refused
    assert "recompute" in answer.phase_names
    return answer


def flip_bit(worker: WorkerServer, block: int) -> None:
    """Damage a block of a worker's KV memory, as a fault of the memory would."""
    page = worker.parts.built.cache.page(block, 1, 1, 0)
    page[3] ^= 0x04


async def test_a_page_that_changed_after_its_digest_is_refused(pair: Pair) -> None:
    """The damage comes when the prompt is computed and nothing of it is sent yet."""
    computed = asyncio.Event()
    damaged: list[int] = []

    async def watch(message: pb.TransferResponse) -> AsyncIterator[pb.TransferResponse]:
        if message.HasField("prefilled"):
            computed.set()
        yield message

    async def damage(message: pb.TransferRequest) -> AsyncIterator[pb.TransferRequest]:
        if message.HasField("posted") and not damaged:
            await computed.wait()
            (held,) = pair.prefill.parts.sender._held.values()
            damaged.append(held.blocks[0])
            flip_bit(pair.prefill, damaged[0])
        yield message

    async with between(pair.prefill, to_sender=damage, to_receiver=watch) as address:
        await assert_recomputed(pair, address, refused=1)
    # Its cache still names the block: what is read from there again must be right.
    flip_bit(pair.prefill, damaged[0])


async def test_wrong_digests_are_refused(pair: Pair) -> None:
    async def lie(message: pb.TransferResponse) -> AsyncIterator[pb.TransferResponse]:
        if message.HasField("ready"):
            message.ready.digests[0] ^= 1
        yield message

    async with between(pair.prefill, to_receiver=lie) as address:
        await assert_recomputed(pair, address, refused=1)


async def test_digests_of_another_place_are_refused(pair: Pair) -> None:
    async def shuffle(message: pb.TransferResponse) -> AsyncIterator[pb.TransferResponse]:
        if message.HasField("ready") and message.ready.num_blocks > 1:
            message.ready.digests[:2] = reversed(message.ready.digests[:2])
        yield message

    async with between(pair.prefill, to_receiver=shuffle) as address:
        await assert_recomputed(pair, address, refused=2)


def ready_field(name: str, value: int) -> Any:
    """A hook that sets a field of every announcement."""

    async def change(message: pb.TransferResponse) -> AsyncIterator[pb.TransferResponse]:
        if message.HasField("ready"):
            setattr(message.ready, name, value)
        yield message

    return change


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("unit", 10_000),
        ("first_block", 500),
        ("num_blocks", 0),
        ("num_blocks", 500),
        ("first_layer", 7),
        ("num_layers", 3),
        ("bytes_per_block", 1 << 40),
        ("bytes_per_block", 1),
    ],
)
async def test_announcements_out_of_range_are_refused_before_anything_is_posted(
    pair: Pair, name: str, value: int
) -> None:
    async with between(pair.prefill, to_receiver=ready_field(name, value)) as address:
        await assert_recomputed(pair, address)


async def test_units_announced_twice_are_refused(pair: Pair) -> None:
    async def repeat(message: pb.TransferResponse) -> AsyncIterator[pb.TransferResponse]:
        yield message
        if message.HasField("ready"):
            yield message

    async with between(pair.prefill, to_receiver=repeat) as address:
        await assert_recomputed(pair, address)


async def test_two_first_tokens_are_refused(pair: Pair) -> None:
    """The engine has taken the first one, and goes on from it."""

    async def repeat(message: pb.TransferResponse) -> AsyncIterator[pb.TransferResponse]:
        if message.HasField("prefilled"):
            yield message
            yield message
            return
        # Held back, so that the hand-off is still under way when the tokens come.
        if message.HasField("ready") and message.ready.first_block + message.ready.num_blocks == 12:
            return
        yield message

    async with between(pair.prefill, to_receiver=repeat) as address:
        await assert_recomputed(pair, address)


def posted(index: int) -> pb.TransferRequest:
    return pb.TransferRequest(posted=pb.UnitPosted(unit=index))


async def test_a_post_of_an_unknown_unit_ends_the_hand_off(pair: Pair) -> None:
    async def invent(message: pb.TransferRequest) -> AsyncIterator[pb.TransferRequest]:
        yield posted(77) if message.HasField("posted") else message

    async with between(pair.prefill, to_sender=invent) as address:
        await assert_recomputed(pair, address)


async def test_a_post_that_comes_twice_ends_the_hand_off(pair: Pair) -> None:
    async def repeat(message: pb.TransferRequest) -> AsyncIterator[pb.TransferRequest]:
        yield message
        if message.HasField("posted"):
            yield message

    async with between(pair.prefill, to_sender=repeat) as address:
        await assert_recomputed(pair, address)


async def test_done_before_everything_was_sent_ends_the_hand_off(pair: Pair) -> None:
    async def hurry(message: pb.TransferRequest) -> AsyncIterator[pb.TransferRequest]:
        yield message
        if message.HasField("posted"):
            yield pb.TransferRequest(done=pb.TransferDone())

    async with between(pair.prefill, to_sender=hurry) as address:
        await assert_recomputed(pair, address)


async def test_a_second_opening_ends_the_hand_off(pair: Pair) -> None:
    async def repeat(message: pb.TransferRequest) -> AsyncIterator[pb.TransferRequest]:
        yield message
        if message.HasField("open"):
            yield message

    async with between(pair.prefill, to_sender=repeat) as address:
        await assert_recomputed(pair, address)


async def test_a_sender_that_falls_silent_is_given_up(pair: Pair) -> None:
    async def silence(message: pb.TransferResponse) -> AsyncIterator[pb.TransferResponse]:
        return
        yield message

    async with between(pair.prefill, to_receiver=silence) as address:
        await assert_recomputed(pair, address)


async def test_a_sender_that_loses_a_unit_is_given_up(pair: Pair) -> None:
    """It goes on giving signs of life: it is the one that misses the post."""

    async def lose(message: pb.TransferResponse) -> AsyncIterator[pb.TransferResponse]:
        if not (message.HasField("ready") and message.ready.unit == 2):
            yield message

    async with between(pair.prefill, to_receiver=lose) as address:
        await assert_recomputed(pair, address)


async def test_a_receiver_that_never_posts_is_given_up(pair: Pair) -> None:
    async def lose(message: pb.TransferRequest) -> AsyncIterator[pb.TransferRequest]:
        if not message.HasField("posted"):
            yield message

    async with between(pair.prefill, to_sender=lose) as address:
        await assert_recomputed(pair, address)


async def test_a_receiver_that_never_confirms_does_not_hold_blocks(pair: Pair) -> None:
    async def lose(message: pb.TransferRequest) -> AsyncIterator[pb.TransferRequest]:
        if not message.HasField("done"):
            yield message

    handoffs = pair.decode.parts.core.state.handoffs
    completed = handoffs.completed
    async with between(pair.prefill, to_sender=lose) as address:
        await pair.fetch("unconfirmed", address)
        assert handoffs.completed == completed + 1
        await eventually(lambda: not any(holdings(pair.prefill).values()), "blocks given back")


async def test_a_waiting_prompt_is_no_silence(pair: Pair) -> None:
    """The prefill worker's engine is busy for longer than the conversation may be silent."""
    handoffs = pair.decode.parts.core.state.handoffs
    before = replace(handoffs)
    alive: list[pb.TransferResponse] = []

    async def count(message: pb.TransferResponse) -> AsyncIterator[pb.TransferResponse]:
        if message.WhichOneof("message") is None:
            alive.append(message)
        yield message

    async with (
        kept_busy(pair.prefill.parts.core.loop) as go_on,
        between(pair.prefill, to_receiver=count) as address,
    ):
        fetch = asyncio.create_task(pair.fetch("patient", address))
        await eventually(lambda: len(alive) >= 10, "ten signs of life")
        go_on.set()
        await fetch
    assert handoffs.completed == before.completed + 1
    assert handoffs.failed == before.failed


async def test_a_failed_probe_is_not_answered_by_anybody_else(pair: Pair) -> None:
    async def lie(message: pb.TransferResponse) -> AsyncIterator[pb.TransferResponse]:
        if message.HasField("ready"):
            message.ready.digests[0] ^= 1
        yield message

    async with between(pair.prefill, to_receiver=lie) as address:
        answer = await pair.fetch("probe", address, probe=True)
    assert isinstance(answer.error, HandoffError)
    assert "digest" in str(answer.error)


async def test_a_link_that_died_in_its_sleep_costs_a_second_try(pair: Pair) -> None:
    await pair.fetch("make a link")
    await idle(pair.prefill, pair.decode)
    handoffs = pair.decode.parts.core.state.handoffs
    before = replace(handoffs)
    assert pair.prefill.parts.links.sending.num_idle > 0
    await forget_idle_links(pair.prefill)

    await pair.fetch("dead link")

    assert handoffs.completed == before.completed + 1
    assert handoffs.failed == before.failed


async def test_a_link_whose_connection_broke_costs_a_second_try(pair: Pair) -> None:
    """The prefill worker still believes in it."""
    await pair.fetch("make another link")
    await idle(pair.prefill, pair.decode)
    handoffs = pair.decode.parts.core.state.handoffs
    before = replace(handoffs)
    for link in [entry.link for entry in pair.decode.parts.links.receiving._idle.values()]:
        await asyncio.to_thread(link._group.abort)

    await pair.fetch("broken link")

    assert handoffs.completed == before.completed + 1
    assert handoffs.failed == before.failed
