"""A request that is given up, in whatever phase and way, leaves nothing behind on either worker.

The workers would wait for each other for a minute here, longer than any test waits: what is given
back is given back because of the end of the request, not of somebody's patience.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from tests.support.halting import kept_busy
from tests.support.worker_proxy import AskStore, between
from tests.support.workers import (
    Answer,
    Gateway,
    attached,
    eventually,
    forget_idle_links,
    holdings,
    idle,
    peer_of,
    random_prompt,
    running,
    submission,
    within,
    worker_config,
)

from twinflow.protos.errors import DeadlineExceeded
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.workers.server import WorkerServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Long enough that no request of this file ends by itself.
ENDLESS = SamplingParams(temperature=0, max_tokens=430, seed=0, ignore_eos=True)
SEATS = 4
SHORT = SamplingParams(temperature=0, max_tokens=4, seed=0, ignore_eos=True)


@dataclass
class Pair:
    prefill: WorkerServer
    decode: WorkerServer


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def workers(model: Path) -> AsyncIterator[Pair]:
    configs = [
        worker_config(
            model,
            name,
            kv_transfer_timeout_s=60.0,
            max_num_seqs=SEATS,
            max_model_len=512,
            num_kv_blocks=400,
        )
        for name in ("prefill-0", "decode-0")
    ]
    async with running(*configs) as (prefill, decode):
        yield Pair(prefill, decode)


@pytest_asyncio.fixture(loop_scope="module")
async def pair(workers: Pair) -> AsyncIterator[Pair]:
    """The pair; every test leaves nothing behind, and the next hand-off works."""
    yield workers
    await idle(workers.prefill, workers.decode)
    handoffs = workers.decode.parts.core.state.handoffs
    before = handoffs.completed
    async with attached(workers.decode) as gateway:
        prompt = random_prompt(random.Random(), 40)
        answer = await gateway.complete(submission(prompt, SHORT, peer_of(workers.prefill)))
    assert len(answer.tokens) == 4
    assert handoffs.completed == before + 1
    await idle(workers.prefill, workers.decode)


Phase = Callable[[Pair, AsyncExitStack, Gateway, pb.Submission], Awaitable[Answer]]
"""Brings a request into a phase and keeps it there until the stack is closed."""


async def waiting_at_decode(
    pair: Pair, stack: AsyncExitStack, gateway: Gateway, request: pb.Submission
) -> Answer:
    """Every seat of the decode worker is taken."""
    other = await stack.enter_async_context(attached(pair.decode))
    for _ in range(SEATS):
        await other.submit(submission(random_prompt(random.Random(), 20), ENDLESS))
    await eventually(lambda: pair.decode.parts.core.stats().num_running == SEATS, "a full house")
    answer = await gateway.submit(request)
    await eventually(lambda: pair.decode.parts.core.stats().num_waiting == 1, "a waiting request")
    return answer


async def ordered(
    pair: Pair, stack: AsyncExitStack, gateway: Gateway, request: pb.Submission
) -> Answer:
    """Queued at the prefill worker, whose engine is busy."""
    await stack.enter_async_context(kept_busy(pair.prefill.parts.core.loop))
    answer = await gateway.submit(request)
    await eventually(lambda: holdings(pair.prefill)["outgoing"] == 1, "a hand-off")
    return answer


async def opening_the_link(
    pair: Pair, stack: AsyncExitStack, gateway: Gateway, request: pb.Submission
) -> Answer:
    """The prefill worker waits for the decode worker's half of the link."""

    async def never(request: pb.LinkStoreRequest, store: AskStore) -> pb.LinkStoreResponse:
        await asyncio.Event().wait()
        return await store()

    await forget_idle_links(pair.prefill)
    await forget_idle_links(pair.decode)
    address = await stack.enter_async_context(between(pair.prefill, on_store_call=never))
    request.prefill.address = address
    answer = await gateway.submit(request)
    await eventually(lambda: holdings(pair.prefill)["stores without a link"] == 1, "a store")
    return answer


async def computed_at_prefill(
    pair: Pair, stack: AsyncExitStack, gateway: Gateway, request: pb.Submission
) -> Answer:
    """Some chunks are computed and announced."""
    announced = asyncio.Event()
    never = asyncio.Event()

    async def stop_there(message: pb.TransferResponse) -> AsyncIterator[pb.TransferResponse]:
        if message.HasField("ready"):
            await stack.enter_async_context(kept_busy(pair.prefill.parts.core.loop))
            announced.set()
            await never.wait()
        yield message

    address = await stack.enter_async_context(between(pair.prefill, to_receiver=stop_there))
    request.prefill.address = address
    answer = await gateway.submit(request)
    await within(announced.wait(), "the first announcement")
    return answer


async def posted_at_decode(
    pair: Pair, stack: AsyncExitStack, gateway: Gateway, request: pb.Submission
) -> Answer:
    """The decode worker waits for bytes, and the prefill worker does not know."""
    posted = asyncio.Event()

    async def keep(message: pb.TransferRequest) -> AsyncIterator[pb.TransferRequest]:
        if message.HasField("posted"):
            posted.set()
            return
        yield message

    address = await stack.enter_async_context(between(pair.prefill, to_sender=keep))
    request.prefill.address = address
    answer = await gateway.submit(request)
    await within(posted.wait(), "the first post")
    await within(answer.begun.wait(), "the first token")
    return answer


async def decoding(
    pair: Pair, stack: AsyncExitStack, gateway: Gateway, request: pb.Submission
) -> Answer:
    """Some tokens have come."""
    answer = await gateway.submit(request)
    await eventually(lambda: len(answer.tokens) > 3, "some tokens")
    return answer


PHASES: tuple[Phase, ...] = (
    waiting_at_decode,
    ordered,
    opening_the_link,
    computed_at_prefill,
    posted_at_decode,
    decoding,
)


async def abort(gateway: Gateway, request: pb.Submission) -> None:
    await gateway.abort(request)


async def leave(gateway: Gateway, request: pb.Submission) -> None:
    await gateway.leave()


async def vanish(gateway: Gateway, request: pb.Submission) -> None:
    await gateway.close()


@pytest.mark.parametrize("how", [abort, leave, vanish])
@pytest.mark.parametrize("phase", PHASES)
async def test_nothing_is_left_of_a_request_that_is_given_up(
    pair: Pair,
    phase: Phase,
    how: Callable[[Gateway, pb.Submission], Awaitable[None]],
) -> None:
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(attached(pair.decode))
        request = submission(random_prompt(random.Random(), 70), ENDLESS, peer_of(pair.prefill))
        answer = await phase(pair, stack, gateway, request)
        assert not answer.done.is_set()

        await how(gateway, request)

        await eventually(
            lambda: (
                not any(n for name, n in holdings(pair.decode).items() if "lease" in name)
                and not len(pair.decode.parts.receiver)
                and not holdings(pair.prefill)["outgoing"]
            ),
            lambda: (holdings(pair.prefill), holdings(pair.decode)),
        )
        assert answer.finish_reason is None


@pytest.mark.parametrize("phase", [waiting_at_decode, ordered, posted_at_decode, decoding])
async def test_deadlines_end_requests_in_every_phase(pair: Pair, phase: Phase) -> None:
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(attached(pair.decode))
        request = submission(
            random_prompt(random.Random(), 70),
            ENDLESS,
            peer_of(pair.prefill),
            deadline_ms=250 if phase is not decoding else 1,
        )
        if phase is decoding:
            answer = await gateway.submit(request)
        else:
            answer = await phase(pair, stack, gateway, request)
        await within(answer.done.wait(), "the deadline")
        assert isinstance(answer.error, DeadlineExceeded)
        assert "decode-0" in str(answer.error)


async def test_links_that_are_given_up_while_they_connect_hold_no_thread(pair: Pair) -> None:
    """One end must not wait in torch, which it would do for a minute, for one that has left."""
    links = pair.decode.parts.links

    async with attached(pair.decode) as gateway:
        connecting: asyncio.Queue[asyncio.Event] = asyncio.Queue()

        async def hold(request: pb.LinkStoreRequest, store: AskStore) -> pb.LinkStoreResponse:
            answer = await store()
            if request.set.value and not request.set.key.startswith("hello"):  # an address
                go_on = asyncio.Event()
                await connecting.put(go_on)
                await go_on.wait()
            return answer

        async with between(pair.prefill, on_store_call=hold) as address:
            for _ in range(8):
                peer = peer_of(pair.prefill, address=address)
                request = submission(random_prompt(random.Random(), 20), ENDLESS, peer)
                await forget_idle_links(pair.decode)
                await gateway.submit(request)
                go_on = await within(connecting.get(), "the address of the decode worker")
                await gateway.abort(request)
                await eventually(
                    lambda: not links.receiving.num_leased and not len(pair.prefill.parts.sender),
                    lambda: (holdings(pair.prefill), holdings(pair.decode)),
                )
                go_on.set()
            await idle(pair.prefill, pair.decode)  # the rendezvous needs the proxy
        threads = [worker.parts.links.threads for worker in (pair.prefill, pair.decode)]
        await eventually(
            lambda: not any(each.num_live for each in threads),
            lambda: [each.num_live for each in threads],
        )


async def test_one_gateway_that_vanishes_takes_only_its_own_requests_along(pair: Pair) -> None:
    async with attached(pair.decode) as staying, attached(pair.decode) as vanishing:
        prompts = [random_prompt(random.Random(), 30) for _ in range(4)]
        requests = [submission(prompt, ENDLESS, peer_of(pair.prefill)) for prompt in prompts]
        stay = await asyncio.gather(*(staying.submit(request) for request in requests[:2]))
        gone = await asyncio.gather(*(vanishing.submit(request) for request in requests[2:]))
        await asyncio.gather(*(answer.begun.wait() for answer in (*stay, *gone)))

        await vanishing.close()

        await asyncio.gather(*(within(answer.done.wait(), "the end") for answer in stay))
        assert all(len(answer.tokens) == ENDLESS.max_tokens for answer in stay)
        assert all(answer.lost for answer in gone)


async def test_a_storm_of_aborts_at_random_moments_leaves_nothing(pair: Pair) -> None:
    rng = random.Random(7)

    async def one(gateway: Gateway) -> bool:
        length = rng.choice((5, 40, 90))
        request = submission(random_prompt(rng, length), SHORT, peer_of(pair.prefill))
        answer = await gateway.submit(request)
        if rng.random() < 0.8:
            await asyncio.sleep(rng.random() * 0.1)
            await gateway.abort(request)
            return answer.finish_reason is not None
        await within(answer.done.wait(), "the end of a request that was not aborted")
        assert answer.error is None
        return True

    async with attached(pair.decode) as gateway:
        finished = await asyncio.gather(*(one(gateway) for _ in range(120)))
        assert any(finished)
        await idle(pair.prefill, pair.decode)
