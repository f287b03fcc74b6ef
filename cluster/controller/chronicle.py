"""What has happened, in numbered events for operators, and how changes were answered. Bounded."""

from collections import OrderedDict, deque
from collections.abc import Callable

from twinflow.cluster.controller.state import Worker
from twinflow.cluster.controller.wire import ROLE_TO_PB
from twinflow.protos.errors import TwinflowError
from twinflow.protos.twinflow.internal.v1 import gateway_pb2
from twinflow.protos.twinflow.v1 import admin_pb2 as pb
from twinflow.workers.convert import failure_of

_MAX_EVENTS = 4096
_MAX_OUTCOMES = 4096


class Chronicle:
    """Events and outcomes.

    Args:
        wall_clock: Unix time in seconds.
        report: hears every event in words.
    """

    def __init__(
        self, wall_clock: Callable[[], float], report: Callable[[str], None] = lambda text: None
    ) -> None:
        self._wall_clock = wall_clock
        self._report = report
        self._events: deque[pb.Event] = deque(maxlen=_MAX_EVENTS)
        self._outcomes: OrderedDict[str, gateway_pb2.Outcome] = OrderedDict()
        self._numbers = 0

    @property
    def last(self) -> int:
        """Number of the latest event."""
        return self._numbers

    def note(
        self, kind: pb.EventKind, message: str, version: int, worker: Worker | None = None
    ) -> None:
        """Something has happened.

        Args:
            kind: what.
            message: in words.
            version: of what is wanted.
            worker: whom it is about.
        """
        self._numbers += 1
        event = pb.Event(
            number=self._numbers,
            kind=kind,
            time_ms=int(self._wall_clock() * 1000),
            message=message,
            version=version,
        )
        if worker is not None:
            event.worker_id, event.epoch = worker.worker_id, worker.epoch
            event.role = ROLE_TO_PB[worker.role]
        self._events.append(event)
        self._report(message)

    def since(self, number: int) -> list[pb.Event]:
        """Events behind this one."""
        return [event for event in self._events if event.number > number]

    def answer(self, request_id: str, refusal: TwinflowError | None = None) -> None:
        """A change was accepted or refused."""
        outcome = gateway_pb2.Outcome(request_id=request_id)
        if refusal is not None:
            outcome.failure.CopyFrom(failure_of(refusal))
        self._outcomes[request_id] = outcome
        while len(self._outcomes) > _MAX_OUTCOMES:
            self._outcomes.popitem(last=False)

    def answered(self, request_id: str) -> bool:
        """Whether a change was answered before."""
        return request_id in self._outcomes

    def outcomes(self, request_ids: list[str]) -> list[gateway_pb2.Outcome]:
        """The answers to these changes."""
        return [self._outcomes[name] for name in request_ids if name in self._outcomes]
