"""The store of a link, as torch at the other worker sees it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc
import pytest
from tests.support.workers import TOKEN, within

from twinflow.parallel.links.config import LinkPeer
from twinflow.parallel.links.store import MET_KEY, MemoryStore, StoreDirectory
from twinflow.protos.errors import InvalidRequest, LinkError, TwinflowError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.workers.handoff.store_calls import RemoteStore, StoreCalls
from twinflow.workers.rpc import abort_call, call_metadata, create_server, open_channel

ME = LinkPeer("decode-0", 3)
T = TypeVar("T")


class StoreService(rpc.WorkerServicer):
    """The rendezvous of a worker and nothing else."""

    def __init__(self, calls: StoreCalls) -> None:
        self._calls = calls

    async def LinkStore(
        self,
        request: pb.LinkStoreRequest,
        context: "grpc.aio.ServicerContext[pb.LinkStoreRequest, pb.LinkStoreResponse]",
    ) -> pb.LinkStoreResponse:
        try:
            return await self._calls.answer(request)
        except TwinflowError as error:
            await abort_call(context, error)


@dataclass
class Rendezvous:
    """A directory behind a server, and how to reach a store of it."""

    directory: StoreDirectory
    calls: StoreCalls
    stub: rpc.WorkerStub

    def remote(self, link_id: str, owner: LinkPeer = ME) -> RemoteStore:
        events = asyncio.get_running_loop()
        return RemoteStore(link_id, owner, self.stub, call_metadata(TOKEN), events)


@asynccontextmanager
async def rendezvous() -> AsyncIterator[Rendezvous]:
    directory = StoreDirectory()
    calls = StoreCalls(directory, 4)
    server = create_server(TOKEN)
    port = server.add_insecure_port("127.0.0.1:0")
    rpc.add_WorkerServicer_to_server(StoreService(calls), server)
    await server.start()
    channel = open_channel(f"127.0.0.1:{port}")
    try:
        yield Rendezvous(directory, calls, rpc.WorkerStub(channel))
    finally:
        await channel.close()
        await server.stop(None)
        directory.close()
        calls.close()


async def blocking(call: Callable[[], T]) -> T:
    """What a link's thread does."""
    result: T = await within(asyncio.to_thread(call), "the answer")
    return result


def use_every_operation(store: RemoteStore | MemoryStore) -> list[object]:
    return [
        store.get("a", 0.0),
        store.set("a", b"\x00\xff"),
        store.get("a", 0.0),
        store.add("n", 3),
        store.add("n", -5),
        store.compare_set("a", b"other", b"new"),
        store.compare_set("a", b"\x00\xff", b"new"),
        store.compare_set("absent", b"", b"first"),
        store.compare_set("missing", b"x", b"y"),
        store.check(["a", "n"]),
        store.check(["a", "nothing"]),
        store.delete("a"),
        store.delete("a"),
    ]


async def test_every_operation_does_what_it_does_locally() -> None:
    async with rendezvous() as there:
        there.directory.create("link", ME)
        remote = there.remote("link")
        answers = await blocking(lambda: use_every_operation(remote))
    assert answers == use_every_operation(MemoryStore("local"))


async def test_a_wait_ends_when_the_value_comes() -> None:
    async with rendezvous() as there:
        store = there.directory.create("link", ME)
        remote = there.remote("link")
        waiting = asyncio.create_task(blocking(lambda: remote.get("k", 20.0)))
        await asyncio.sleep(0.02)
        store.set("k", b"value")
        assert await waiting == b"value"


async def test_a_peer_may_ask_before_the_store_is_there() -> None:
    async with rendezvous() as there:
        remote = there.remote("link")
        asking = asyncio.create_task(blocking(lambda: remote.add("n", 1)))
        await asyncio.sleep(0.02)
        there.directory.create("link", ME)
        assert await asking == 1


@pytest.mark.parametrize("stranger", [LinkPeer("decode-1", 3), LinkPeer("decode-0", 2)])
async def test_stores_are_seen_by_their_peer_only(stranger: LinkPeer) -> None:
    async with rendezvous() as there:
        there.directory.create("link", ME)
        remote = there.remote("link", stranger)
        with pytest.raises(LinkError, match="not a link of"):
            await blocking(lambda: remote.set("k", b""))


async def test_a_store_that_is_dropped_wakes_the_peer() -> None:
    async with rendezvous() as there:
        there.directory.create("link", ME)
        remote = there.remote("link")
        waiting = asyncio.create_task(blocking(lambda: remote.get("k", 20.0)))
        await asyncio.sleep(0.05)
        there.directory.drop("link")
        with pytest.raises(LinkError, match="link"):
            await waiting


async def test_calling_off_wakes_the_thread_that_waits_and_refuses_the_next() -> None:
    async with rendezvous() as there:
        remote = there.remote("link")  # a store that the peer has not made
        waiting = asyncio.create_task(blocking(lambda: remote.set("k", b"")))
        await asyncio.sleep(0.05)
        remote.call_off()
        with pytest.raises(LinkError, match="called off"):
            await waiting
        with pytest.raises(LinkError, match="called off"):
            await blocking(lambda: remote.set("k", b""))


async def test_calling_off_is_too_late_when_both_ends_have_met() -> None:
    async with rendezvous() as there:
        store, remote = there.directory.create("link", ME), there.remote("link")
        await blocking(lambda: remote.set(MET_KEY, b""))
        waiting = asyncio.create_task(blocking(lambda: remote.get("address", 20.0)))
        remote.call_off()
        store.set("address", b"here")
        assert await waiting == b"here"


async def test_a_peer_that_is_not_there_is_an_error_that_names_the_link() -> None:
    channel = open_channel("127.0.0.1:1")
    events = asyncio.get_running_loop()
    remote = RemoteStore("link-7", ME, rpc.WorkerStub(channel), call_metadata(TOKEN), events)
    with pytest.raises(LinkError, match="link-7: rendezvous failed"):
        await blocking(lambda: remote.set("k", b""))
    await channel.close()


async def test_a_call_without_an_operation_is_refused() -> None:
    async with rendezvous() as there:
        there.directory.create("link", ME)
        request = pb.LinkStoreRequest(link_id="link", sender_id="decode-0", sender_epoch=3)
        with pytest.raises(InvalidRequest, match="operation"):
            await there.calls.answer(request)
