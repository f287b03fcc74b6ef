"""One gateway's session on a worker: its requests, and one message per step back.

The session is the unit of loss: when its stream ends, for whatever reason, every request that
came through it is aborted, so a dead gateway holds no blocks.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from twinflow.protos.errors import DeadlineExceeded, TwinflowError, Unavailable
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.outputs import TokenDelta
from twinflow.workers.convert import failure_to_pb, output_to_pb, request_from_pb
from twinflow.workers.core import WorkerCore
from twinflow.workers.fault_points import Point

_STATS_INTERVAL_S = 0.5


class _Entry:
    """A live request of the session."""

    __slots__ = ("attempt", "request_id", "timer")

    def __init__(self, request_id: str, attempt: int, timer: asyncio.TimerHandle) -> None:
        self.request_id = request_id
        self.attempt = attempt
        self.timer = timer


class Session:
    """The requests that one gateway has submitted.

    Args:
        core: the worker.
        max_backlog: messages the gateway may leave unread; one more ends the session.
    """

    def __init__(self, core: WorkerCore, max_backlog: int) -> None:
        self._core = core
        self._entries: dict[str, _Entry] = {}
        self._outputs: list[pb.RequestOutput] = []
        self._unread: deque[pb.AttachResponse] = deque()
        self._max_backlog = max_backlog
        self._overrun = False
        self._ended = False
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._entries)

    def handle(self, message: pb.AttachRequest) -> None:
        """Act on a message of the gateway."""
        kind = message.WhichOneof("message")
        if kind == "submit":
            self._submit(message.submit)
        elif kind == "abort":
            self._abort(engine_id_of(message.abort.request_id, message.abort.attempt))

    def _submit(self, submission: pb.Submission) -> None:
        request_id, attempt = submission.request_id, submission.attempt
        engine_id = engine_id_of(request_id, attempt)
        if engine_id in self._entries:
            return  # sent twice: it is being served
        try:
            request = request_from_pb(submission, engine_id)
        except TwinflowError as error:
            self._refuse(request_id, attempt, error)
            return
        timer = asyncio.get_running_loop().call_later(
            submission.deadline_ms / 1000, self._expire, engine_id
        )
        self._entries[engine_id] = _Entry(request_id, attempt, timer)
        self._core.submit(request, self)

    def _refuse(self, request_id: str, attempt: int, error: TwinflowError) -> None:
        self._outputs.append(failure_to_pb(request_id, attempt, error))
        self.flush()

    def _abort(self, engine_id: str) -> None:
        entry = self._entries.pop(engine_id, None)
        if entry is not None:
            entry.timer.cancel()
            self._core.abort(engine_id)

    def _expire(self, engine_id: str) -> None:
        entry = self._entries.get(engine_id)
        if entry is not None:
            self._abort(engine_id)
            error = DeadlineExceeded(
                f"the request's deadline passed on worker {self._core.config.worker_id}"
            )
            self._refuse(entry.request_id, entry.attempt, error)

    def deliver(self, engine_id: str, delta: TokenDelta) -> None:
        """See `RequestOwner.deliver`."""
        entry = self._entries.get(engine_id)
        if entry is None:
            return
        self._core.faults.reach(Point.DECODE)
        if delta.finish_reason is not None:
            entry.timer.cancel()
            del self._entries[engine_id]
        self._outputs.append(output_to_pb(entry.request_id, entry.attempt, delta))

    def fail(self, engine_id: str, error: TwinflowError) -> None:
        """See `RequestOwner.fail`."""
        entry = self._entries.pop(engine_id, None)
        if entry is not None:
            entry.timer.cancel()
            self._outputs.append(failure_to_pb(entry.request_id, entry.attempt, error))

    def flush(self) -> None:
        """See `RequestOwner.flush`: one message for all outputs of the step."""
        if len(self._unread) >= self._max_backlog:
            # The stream itself may be stuck in a write; the blocks need not wait for it.
            self._overrun = True
            self.close()
            return
        outputs, self._outputs = self._outputs, []
        self._unread.append(pb.AttachResponse(outputs=outputs, stats=self._core.stats()))
        self._wake.set()

    async def messages(self) -> AsyncIterator[pb.AttachResponse]:
        """What the gateway is to be told, and the worker's load at least twice a second.

        Raises:
            WorkerLost: the engine failed for good; every request has been told.
            Unavailable: the gateway reads too slowly.
        """
        if self._core.state.death is None:
            yield pb.AttachResponse(stats=self._core.stats())
        while True:
            self._wake.clear()
            while self._unread and not self._overrun:
                yield self._unread.popleft()
            if self._overrun:
                raise Unavailable("the gateway does not read its messages")
            if self._ended:
                return
            if self._core.state.death is not None:
                raise self._core.state.death
            try:
                async with asyncio.timeout(_STATS_INTERVAL_S):
                    await self._wake.wait()
            except TimeoutError:
                yield pb.AttachResponse(stats=self._core.stats())

    def end(self) -> None:
        """End `messages` after what is unread."""
        self._ended = True
        self._wake.set()

    def close(self) -> None:
        """Abort every live request."""
        for engine_id in list(self._entries):
            self._abort(engine_id)


def engine_id_of(request_id: str, attempt: int) -> str:
    """A request's name within an engine; attempts of one request never meet."""
    return f"{request_id}/{attempt}"
