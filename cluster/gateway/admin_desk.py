"""Where operators' questions and changes meet what the controller says.

The controller calls the gateway and never the other way round: a change waits here until the
controller takes it along, and its outcome comes with a later exchange. What the controller said
last is kept for everybody who asks meanwhile. Nothing is decided here.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from twinflow.protos.errors import DeadlineExceeded, InvalidRequest, TwinflowError, Unavailable
from twinflow.protos.errors import from_code as error_from_code
from twinflow.protos.twinflow.internal.v1 import gateway_pb2 as pb
from twinflow.protos.twinflow.v1 import admin_pb2

# Of each kind, the latest that are remembered.
_MAX_EVENTS = 4096
_MAX_OUTCOMES = 4096
# Changes that wait for the controller.
_MAX_PENDING = 256


@dataclass(slots=True)
class _Change:
    """A change and what became of it.

    Attributes:
        command: what was asked for.
        done: set when the outcome is here.
        refusal: why it was refused, if it was.
    """

    command: pb.Command
    done: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: TwinflowError | None = None


class AdminDesk:
    """Keeps changes for the controller, and what it says for operators."""

    def __init__(self) -> None:
        self._cluster: admin_pb2.Cluster | None = None
        self._changes: OrderedDict[str, _Change] = OrderedDict()
        self._events: deque[admin_pb2.Event] = deque(maxlen=_MAX_EVENTS)
        self._news = asyncio.Event()

    @property
    def cluster(self) -> admin_pb2.Cluster:
        """What the controller said last, a copy.

        Raises:
            Unavailable: it has not said anything yet.
        """
        if self._cluster is None:
            raise Unavailable("The server is starting.", retry_after_s=2.0)
        copy = admin_pb2.Cluster()
        copy.CopyFrom(self._cluster)
        return copy

    def hear(self, request: pb.SyncRequest) -> list[pb.Command]:
        """Keep what the controller says; returns the changes that it has not answered yet."""
        self._cluster = request.cluster
        last = self._events[-1].number if self._events else 0
        self._events.extend(event for event in request.events if event.number > last)
        for outcome in request.outcomes:
            change = self._changes.get(outcome.request_id)
            if change is not None and not change.done.is_set():
                if outcome.HasField("failure"):
                    failure = outcome.failure
                    change.refusal = error_from_code(failure.code, failure.message)
                change.done.set()
        self._news.set()
        self._news = asyncio.Event()
        return [change.command for change in self._pending()]

    async def ask(
        self, request_id: str, command: pb.Command, deadline_s: float
    ) -> admin_pb2.Cluster:
        """Pass a change on and wait until the controller has accepted it.

        Sent again with the same id, it is the same change.

        Raises:
            InvalidRequest: the controller refuses it, or the id was used for another one.
            Unavailable: the server is starting, or too many changes wait.
            DeadlineExceeded: the controller did not take it up in time.
        """
        change = self._changes.get(request_id) or self._admit(request_id, command)
        if change.command != command:
            raise InvalidRequest("This request_id was used for another change.", "request_id")
        try:
            async with asyncio.timeout(deadline_s):
                await change.done.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                f"The controller did not take up the change within {deadline_s:.3g} s."
            ) from None
        if change.refusal is not None:
            raise change.refusal
        return self.cluster

    async def events(self, after: int | None) -> AsyncIterator[admin_pb2.Event]:
        """Events as they come, for ever.

        Args:
            after: number of the last one that is known; None begins with what happens next.
        """
        last = self.cluster.last_event if after is None else after
        while True:
            news = self._news
            for event in [event for event in self._events if event.number > last]:
                last = event.number
                yield event
            await news.wait()

    def _admit(self, request_id: str, command: pb.Command) -> _Change:
        if self._cluster is None:
            raise Unavailable("The server is starting.", retry_after_s=2.0)
        if len(list(self._pending())) >= _MAX_PENDING:
            raise Unavailable("Too many changes wait for the controller.", retry_after_s=2.0)
        change = self._changes[request_id] = _Change(command)
        while len(self._changes) > _MAX_OUTCOMES:
            self._changes.popitem(last=False)
        return change

    def _pending(self) -> Iterable[_Change]:
        return (change for change in self._changes.values() if not change.done.is_set())
