"""A launcher without processes: services that start, fail, die and stop as they are told."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
from tests.support.engines import ManualClock

from twinflow.cluster.cli.progress import ReadySummary
from twinflow.cluster.launch.base import ServiceHandle, ServiceSpec, ServiceStatus
from twinflow.cluster.launch.machine import Machine, Node

ENDPOINTS = {
    "worker": (("grpc", "127.0.0.1:5{number:03}"),),
    "gateway": (
        ("http", "127.0.0.1:8000"),
        ("grpc", "127.0.0.1:50051"),
        ("control", "127.0.0.1:7000"),
    ),
}


class EventClock(ManualClock):
    """A clock to which things happen while somebody waits.

    Attributes:
        at: (time, event), called once the time has come.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at: list[tuple[float, Callable[[], None]]] = []

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        due = [entry for entry in self.at if entry[0] <= self.now]
        self.at = [entry for entry in self.at if entry not in due]
        for _, event in due:
            event()


class FakeHandle:
    """A service that is ready the third time it is asked.

    Attributes:
        spec: what was started.
        steps: what it answers, one status after the other; the last one stays.
        stop_takes_s: time between the order to stop and the end; None for never.
        stopped_with: graces of the orders to stop.
        on_stop: called with the order to stop.
        alive: its process runs.
    """

    def __init__(self, spec: ServiceSpec, number: int, clock: ManualClock) -> None:
        self.spec = spec
        self.steps = [
            ServiceStatus("starting", "starting"),
            ServiceStatus("starting", "loading weights", 30, 100),
            ServiceStatus(
                "ready",
                endpoints=tuple(
                    (name, address.format(number=number)) for name, address in ENDPOINTS[spec.kind]
                ),
            ),
        ]
        self.stop_takes_s: float | None = 1.0
        self.stopped_with: list[float] = []
        self.on_stop: Callable[[], None] = lambda: None
        self.alive = True
        self._stop_at: float | None = None
        self._clock = clock

    @property
    def name(self) -> str:
        return self.spec.name

    def status(self) -> ServiceStatus:
        return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]

    def stop(self, grace_s: float) -> None:
        self.on_stop()
        self.stopped_with.append(grace_s)
        if self.stop_takes_s is not None:
            self._stop_at = self._clock.now + self.stop_takes_s

    def wait_stopped(self, timeout_s: float) -> bool:
        if self._stop_at is not None and self._clock.now + timeout_s >= self._stop_at:
            self.alive = False
        else:
            self._clock.advance(timeout_s)
        return not self.alive

    def kill(self) -> None:
        self.alive = False


@dataclass
class FakeLauncher:
    """Implements `Launcher`.

    Attributes:
        clock: moves as the deployment waits.
        prepare: may change a service before it is watched.
        problem: why it does not open, if it does not.
        machines: what it can start services on.
        handles: every service, in the order of their start.
        opened: how often.
        closed: how often.
        rests: how often there was nothing to do.
        released: names of the services whose places were given back.
    """

    clock: EventClock = field(default_factory=EventClock)
    prepare: Callable[[FakeHandle], None] = lambda handle: None
    problem: Exception | None = None
    machines: list[Node] = field(default_factory=lambda: [Node(Machine(4, 1 << 30))])
    handles: list[FakeHandle] = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    rests: int = 0
    released: list[str] = field(default_factory=list)

    def nodes(self) -> list[Node]:
        return self.machines

    def open(self) -> None:
        self.opened += 1
        if self.problem is not None:
            raise self.problem

    def start(self, specs: Sequence[ServiceSpec]) -> list[FakeHandle]:
        return [self._start(spec) for spec in specs]

    def _start(self, spec: ServiceSpec) -> FakeHandle:
        handle = FakeHandle(spec, len(self.handles), self.clock)
        self.prepare(handle)
        self.handles.append(handle)
        return handle

    def stand_by(self) -> None:
        self.rests += 1

    def release(self, handles: Sequence[ServiceHandle]) -> None:
        self.released += [handle.name for handle in handles]

    def close(self) -> None:
        self.closed += 1
        for handle in self.handles:
            handle.kill()

    def named(self, name: str) -> FakeHandle:
        """The latest service with this name."""
        found = [handle for handle in self.handles if handle.name == name]
        return found[-1]

    def config_of(self, name: str) -> dict[str, object]:
        """What a service was configured with."""
        config: dict[str, object] = msgspec.json.decode(self.named(name).spec.config)
        return config


@dataclass
class RecordingUI:
    """Implements `ServeUI`: keeps what it was told."""

    phases: list[str] = field(default_factory=list)
    amounts: list[tuple[int, int]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    summaries: list[ReadySummary] = field(default_factory=list)

    def phase(self, name: str, detail: str = "") -> None:
        self.phases.append(name)

    def progress(self, done: int, total: int) -> None:
        self.amounts.append((done, total))

    def ready(self, summary: ReadySummary) -> None:
        self.summaries.append(summary)

    def message(self, text: str) -> None:
        self.messages.append(text)


def fails_with(detail: str, code: str) -> Iterable[ServiceStatus]:
    """A service that says why it cannot start."""
    return [ServiceStatus("starting"), ServiceStatus("failed", detail, error_code=code)]
