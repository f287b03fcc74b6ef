"""Workers' processes that exist in the test only."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from twinflow.cluster.controller.fleet import Sighting
from twinflow.protos.errors import TwinflowError
from twinflow.workers.role import Role


@dataclass
class FakeFleet:
    """Implements `WorkerFleet`: workers that start, stop and die as they are told.

    Attributes:
        sightings: how far each worker is.
        bounds: how many more may start.
        refusal: why none can be started, if none can.
        eager: workers are ready, and gone, when they are looked at next.
        log: what was done, in order.
    """

    sightings: dict[str, Sighting] = field(default_factory=dict)
    bounds: dict[Role, int] = field(default_factory=dict)
    refusal: TwinflowError | None = None
    eager: bool = False
    log: list[str] = field(default_factory=list)

    def room(self) -> Mapping[Role, int]:
        return self.bounds

    def start(self, worker_id: str, role: Role, epoch: int) -> None:
        if self.refusal is not None:
            raise self.refusal
        assert worker_id not in self.sightings
        self.log.append(f"start {worker_id} {epoch}")
        ready = Sighting("ready", f"address of {worker_id}")
        loading = Sighting("starting", detail="loading weights")
        self.sightings[worker_id] = ready if self.eager else loading

    def look(self, worker_id: str) -> Sighting:
        return self.sightings[worker_id]

    def stop(self, worker_id: str, grace_s: float) -> None:
        self.log.append(f"stop {worker_id} {grace_s:g}")
        if self.eager:
            self.sightings[worker_id] = Sighting("gone", detail="it was stopped")

    def kill(self, worker_id: str) -> None:
        self.log.append(f"kill {worker_id}")
        del self.sightings[worker_id]
