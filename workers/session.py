"""One gateway's session on a worker: its requests, and one message per step back.

The session is the unit of loss: when its stream ends, for whatever reason, every request that
came through it is aborted, so a dead gateway holds no blocks.
"""

import asyncio
from collections.abc import AsyncIterator

from twinflow.protos.errors import DeadlineExceeded, TwinflowError, Unavailable
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.outputs import TokenDelta
from twinflow.workers.convert import failure_to_pb, output_to_pb, request_from_pb
from twinflow.workers.core import WorkerCore

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
        self._messages: asyncio.Queue[pb.AttachResponse | None] = asyncio.Queue(max_backlog)
        self._overrun = False

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
        if self._core.draining:
            self._refuse(request_id, attempt, Unavailable("the worker is draining"))
            return
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
        outputs, self._outputs = self._outputs, []
        message = pb.AttachResponse(outputs=outputs, stats=self._core.stats())
        try:
            self._messages.put_nowait(message)
        except asyncio.QueueFull:
            self._overrun = True

    async def messages(self) -> AsyncIterator[pb.AttachResponse]:
        """What the gateway is to be told, and the worker's load at least twice a second.

        Raises:
            Unavailable: the gateway reads too slowly.
        """
        yield pb.AttachResponse(stats=self._core.stats())
        while not self._overrun:
            try:
                message = await asyncio.wait_for(self._messages.get(), _STATS_INTERVAL_S)
            except TimeoutError:
                message = pb.AttachResponse(stats=self._core.stats())
            if message is None:
                return
            yield message
        raise Unavailable("the gateway does not read its messages")

    def end(self) -> None:
        """End `messages` after what is queued."""
        if not self._messages.full():
            self._messages.put_nowait(None)

    def close(self) -> None:
        """Abort every live request."""
        for engine_id in list(self._entries):
            self._abort(engine_id)


def engine_id_of(request_id: str, attempt: int) -> str:
    """A request's name within an engine; attempts of one request never meet."""
    return f"{request_id}/{attempt}"
