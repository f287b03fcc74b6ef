"""The rendezvous of links over gRPC: both ends of `Worker.LinkStore`.

torch meets its peer through a key-value store. The store of a link lives at its sender; here are
the client that the receiver's torch talks to, and the handler that answers it.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Sequence

import grpc

from twinflow.parallel.links.config import LinkPeer
from twinflow.parallel.links.store import MET_KEY, MemoryStore, StoreDirectory
from twinflow.protos.errors import InvalidRequest, LinkError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.workers.threads import CallThreads

_CALL_TIMEOUT_S = 5.0
# How long a peer's first call may come before the link is known here.
_EARLY_S = 5.0
_CALLED_OFF = "it was called off"


class RemoteStore:
    """A link's store at the peer, for torch's blocking calls on a link's own thread.

    Used by one thread at a time. Another one may call the opening of the link off, until this end
    says that the two have met.

    Args:
        link_id: the link.
        owner: this worker, as the peer knows it.
        stub: the peer.
        metadata: of every call.
        events: the event loop that the stub belongs to.
    """

    def __init__(
        self,
        link_id: str,
        owner: LinkPeer,
        stub: rpc.WorkerStub,
        metadata: tuple[tuple[str, str], ...],
        events: asyncio.AbstractEventLoop,
    ) -> None:
        self._link_id = link_id
        self._owner = owner
        self._stub = stub
        self._metadata = metadata
        self._events = events
        self._deciding = threading.Lock()
        self._call_under_way: concurrent.futures.Future[pb.LinkStoreResponse | str] | None = None
        self._off = False
        self._met = False

    def call_off(self) -> None:
        """Refuse every call with a LinkError, the one that is under way too; see `rendezvous`."""
        with self._deciding:
            self._off = not self._met
            call = self._call_under_way if self._off else None
        if call is not None:
            call.cancel()

    def set(self, key: str, value: bytes) -> None:
        """See `StoreBackend.set`."""
        self._call(pb.LinkStoreRequest(set=pb.LinkStoreRequest.SetValue(key=key, value=value)))

    def get(self, key: str, timeout_s: float) -> bytes | None:
        """See `StoreBackend.get`."""
        get = pb.LinkStoreRequest.GetValue(key=key, timeout_ms=int(timeout_s * 1000))
        answer = self._call(pb.LinkStoreRequest(get=get), timeout_s)
        return answer.value if answer.found else None

    def add(self, key: str, amount: int) -> int:
        """See `StoreBackend.add`."""
        add = pb.LinkStoreRequest.AddValue(key=key, amount=amount)
        return self._call(pb.LinkStoreRequest(add=add)).number

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        """See `StoreBackend.compare_set`."""
        change = pb.LinkStoreRequest.CompareSet(key=key, expected=expected, desired=desired)
        return self._call(pb.LinkStoreRequest(compare_set=change)).value

    def check(self, keys: Sequence[str]) -> bool:
        """See `StoreBackend.check`."""
        check = pb.LinkStoreRequest.CheckKeys(keys=keys)
        return self._call(pb.LinkStoreRequest(check=check)).found

    def delete(self, key: str) -> bool:
        """See `StoreBackend.delete`."""
        delete = pb.LinkStoreRequest.DeleteKey(key=key)
        return self._call(pb.LinkStoreRequest(delete=delete)).found

    def _call(self, request: pb.LinkStoreRequest, wait_s: float = 0.0) -> pb.LinkStoreResponse:
        request.link_id = self._link_id
        request.sender_id, request.sender_epoch = self._owner.worker_id, self._owner.epoch
        timeout_s = wait_s + _CALL_TIMEOUT_S
        call = self._begin(request, timeout_s)
        try:
            answer = call.result(timeout_s + 1.0)
        except TimeoutError:
            call.cancel()
            answer = f"no answer within {timeout_s:g} s"
        except concurrent.futures.CancelledError:
            answer = _CALLED_OFF
        if isinstance(answer, str):
            raise self._error(answer)
        return answer

    def _begin(
        self, request: pb.LinkStoreRequest, timeout_s: float
    ) -> "concurrent.futures.Future[pb.LinkStoreResponse | str]":
        with self._deciding:
            if self._off:
                raise self._error(_CALLED_OFF)
            self._met = self._met or request.set.key == MET_KEY
            call = asyncio.run_coroutine_threadsafe(self._send(request, timeout_s), self._events)
            self._call_under_way = call
            return call

    async def _send(
        self, request: pb.LinkStoreRequest, timeout_s: float
    ) -> pb.LinkStoreResponse | str:
        """The answer, or why there is none: nobody may be left to raise it to."""
        try:
            answer: pb.LinkStoreResponse = await self._stub.LinkStore(
                request, metadata=self._metadata, timeout=timeout_s
            )
        except grpc.aio.AioRpcError as error:
            return error.details() or error.code().name.lower()
        return answer

    def _error(self, reason: str) -> LinkError:
        return LinkError(f"link {self._link_id}: rendezvous failed: {reason}")


class StoreCalls:
    """Answers the calls of peers from the stores of this worker's links.

    Args:
        directory: the stores.
        max_calls: how many may wait for a key at the same time; of each link that is being opened
            one does.
    """

    def __init__(self, directory: StoreDirectory, max_calls: int) -> None:
        self._directory = directory
        self._seats = asyncio.Semaphore(max_calls)
        self._threads = CallThreads("twinflow-rendezvous")

    def close(self) -> None:
        """Answer no more calls. A thread that still waits ends with its wait."""
        self._threads.shutdown(wait=False)

    async def answer(self, request: pb.LinkStoreRequest) -> pb.LinkStoreResponse:
        """Carry out one operation.

        Raises:
            LinkError: no such link, or it is not the caller's.
            InvalidRequest: no operation.
        """
        async with self._seats:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._answer, request
            )

    def _answer(self, request: pb.LinkStoreRequest) -> pb.LinkStoreResponse:
        peer = LinkPeer(request.sender_id, request.sender_epoch)
        return _apply(self._directory.find(request.link_id, peer, _EARLY_S), request)


def _apply(store: MemoryStore, request: pb.LinkStoreRequest) -> pb.LinkStoreResponse:
    match request.WhichOneof("operation"):
        case "set":
            store.set(request.set.key, request.set.value)
            return pb.LinkStoreResponse()
        case "get":
            value = store.get(request.get.key, request.get.timeout_ms / 1000)
            return pb.LinkStoreResponse(value=value or b"", found=value is not None)
        case "add":
            return pb.LinkStoreResponse(number=store.add(request.add.key, request.add.amount))
        case "compare_set":
            change = request.compare_set
            value = store.compare_set(change.key, change.expected, change.desired)
            return pb.LinkStoreResponse(value=value)
        case "check":
            return pb.LinkStoreResponse(found=store.check(list(request.check.keys)))
        case "delete":
            return pb.LinkStoreResponse(found=store.delete(request.delete.key))
        case _:
            raise InvalidRequest("a link store call names no operation.", "operation")
