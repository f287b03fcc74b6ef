"""The gRPC face of a worker: `twinflow.internal.v1.Worker`, and what of it every rank serves.

Turns calls into calls of the core and of the hand-off, errors into status codes, and nothing else.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import structlog

from twinflow.protos.errors import TwinflowError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.workers.core import WorkerCore
from twinflow.workers.handoff.sender import KVSender
from twinflow.workers.handoff.store_calls import StoreCalls
from twinflow.workers.rpc import abort_call
from twinflow.workers.session import Session


class HandoffService(rpc.WorkerServicer):
    """Serves the hand-offs of one rank.

    Args:
        sender: outgoing hand-offs.
        stores: rendezvous of links.
    """

    def __init__(self, sender: KVSender, stores: StoreCalls) -> None:
        self._sender = sender
        self._stores = stores

    async def Transfer(
        self,
        request_iterator: AsyncIterator[pb.TransferRequest],
        context: "grpc.aio.ServicerContext[pb.TransferRequest, pb.TransferResponse]",
    ) -> AsyncIterator[pb.TransferResponse]:
        """See the proto."""
        try:
            async with contextlib.aclosing(self._sender.serve(request_iterator)) as responses:
                async for response in responses:
                    yield response
        except TwinflowError as error:
            await abort_call(context, error)

    async def LinkStore(
        self,
        request: pb.LinkStoreRequest,
        context: "grpc.aio.ServicerContext[pb.LinkStoreRequest, pb.LinkStoreResponse]",
    ) -> pb.LinkStoreResponse:
        """See the proto."""
        try:
            return await self._stores.answer(request)
        except TwinflowError as error:
            await abort_call(context, error)


class WorkerService(HandoffService):
    """Serves one worker, at its rank 0.

    Args:
        core: engine and requests.
        sender: outgoing hand-offs.
        stores: rendezvous of links.
        description: who the worker is; answered to Describe.
    """

    def __init__(
        self,
        core: WorkerCore,
        sender: KVSender,
        stores: StoreCalls,
        description: pb.DescribeResponse,
    ) -> None:
        super().__init__(sender, stores)
        self._core = core
        self._description = description
        self._sessions: set[Session] = set()

    def end_sessions(self) -> None:
        """Let every session end after what is unread; their requests are aborted."""
        for session in self._sessions:
            session.end()

    async def Describe(
        self,
        request: pb.DescribeRequest,
        context: "grpc.aio.ServicerContext[pb.DescribeRequest, pb.DescribeResponse]",
    ) -> pb.DescribeResponse:
        """See the proto; a worker whose engine is dead says that instead."""
        if self._core.state.death is not None:
            await abort_call(context, self._core.state.death)
        return self._description

    async def Attach(
        self,
        request_iterator: AsyncIterator[pb.AttachRequest],
        context: "grpc.aio.ServicerContext[pb.AttachRequest, pb.AttachResponse]",
    ) -> AsyncIterator[pb.AttachResponse]:
        """See the proto."""
        session = Session(self._core, self._core.config.max_session_backlog)
        self._sessions.add(session)
        reader = asyncio.create_task(_read(request_iterator, session))
        try:
            async for message in session.messages():
                yield message
        except TwinflowError as error:
            await abort_call(context, error)
        finally:
            self._sessions.discard(session)
            session.close()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def Drain(
        self,
        request: pb.DrainRequest,
        context: "grpc.aio.ServicerContext[pb.DrainRequest, pb.DrainResponse]",
    ) -> pb.DrainResponse:
        """See the proto."""
        return pb.DrainResponse(aborted=await self._core.drain(request.timeout_ms / 1000))


async def _read(requests: AsyncIterator[pb.AttachRequest], session: Session) -> None:
    """Hand a gateway's messages to its session; the end of them ends it."""
    try:
        async for message in requests:
            session.handle(message)
    except Exception:  # noqa: BLE001 - whatever the gateway sent, it costs no more than its session
        structlog.get_logger().exception("a session was given up")
    finally:
        session.end()
