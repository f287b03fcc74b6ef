"""A man in the middle between a decode worker and a prefill worker.

The decode worker is given the proxy's address; the proxy passes every call on to the real prefill
worker. What the two say in a hand-off goes through a hook each way, which may change, repeat, drop
or hold messages, or do something to a worker at an exact point of the conversation.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
from tests.support.workers import TOKEN, peer_of

from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.workers.rpc import call_metadata, create_server, open_channel
from twinflow.workers.server import WorkerServer

T = TypeVar("T", pb.TransferRequest, pb.TransferResponse)
# What becomes of a message on its way: an async generator of what is passed on.
Hook = Callable[[T], AsyncIterator[T]]

AskStore = Callable[[], Awaitable[pb.LinkStoreResponse]]
# What a call to the sender's store is answered; `AskStore` passes the call on.
StoreHook = Callable[[pb.LinkStoreRequest, AskStore], Awaitable[pb.LinkStoreResponse]]


async def pass_on(message: T) -> AsyncIterator[T]:
    """Change nothing."""
    yield message


async def ask(request: pb.LinkStoreRequest, store: AskStore) -> pb.LinkStoreResponse:
    """Change nothing."""
    return await store()


class Proxy(rpc.WorkerServicer):
    """Serves the calls of hand-offs by asking another worker.

    Args:
        address: of the worker behind it.

    Attributes:
        to_sender: what becomes of the decode worker's messages.
        to_receiver: what becomes of the prefill worker's messages.
        on_store_call: what becomes of the rendezvous of links.
    """

    def __init__(self, address: str) -> None:
        self._channel = open_channel(address)
        self._stub = rpc.WorkerStub(self._channel)
        self._metadata = call_metadata(TOKEN)
        self.to_sender: Hook[pb.TransferRequest] = pass_on
        self.to_receiver: Hook[pb.TransferResponse] = pass_on
        self.on_store_call: StoreHook = ask

    async def Transfer(
        self,
        request_iterator: AsyncIterator[pb.TransferRequest],
        context: "grpc.aio.ServicerContext[pb.TransferRequest, pb.TransferResponse]",
    ) -> AsyncIterator[pb.TransferResponse]:
        call = self._stub.Transfer(
            self._requests(request_iterator), metadata=self._metadata, timeout=60
        )
        try:
            async for response in call:
                async for changed in self.to_receiver(response):
                    yield changed
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
        finally:
            call.cancel()

    async def _requests(
        self, requests: AsyncIterator[pb.TransferRequest]
    ) -> AsyncIterator[pb.TransferRequest]:
        async for request in requests:
            async for changed in self.to_sender(request):
                yield changed

    async def LinkStore(
        self,
        request: pb.LinkStoreRequest,
        context: "grpc.aio.ServicerContext[pb.LinkStoreRequest, pb.LinkStoreResponse]",
    ) -> pb.LinkStoreResponse:
        async def store() -> pb.LinkStoreResponse:
            answer: pb.LinkStoreResponse = await self._stub.LinkStore(
                request, metadata=self._metadata, timeout=60
            )
            return answer

        try:
            return await self.on_store_call(request, store)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")

    async def close(self) -> None:
        """Close the channel to the worker."""
        await self._channel.close()


@asynccontextmanager
async def between(
    worker: WorkerServer | str,
    *,
    to_sender: Any = pass_on,
    to_receiver: Any = pass_on,
    on_store_call: StoreHook = ask,
) -> AsyncIterator[str]:
    """A proxy in front of a prefill worker, or of an address; yields the proxy's address."""
    address = worker if isinstance(worker, str) else peer_of(worker).address
    proxy = Proxy(address)
    proxy.to_sender, proxy.to_receiver = to_sender, to_receiver
    proxy.on_store_call = on_store_call
    server = create_server(TOKEN)
    port = server.add_insecure_port("127.0.0.1:0")
    rpc.add_WorkerServicer_to_server(proxy, server)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
        await proxy.close()
        await asyncio.sleep(0)
