"""A cluster that exists in arithmetic only: what `plan` decides happens to it at once or later.

`World` plays launcher and gateways: workers start, die and finish draining when it is told, and
every property that must hold at every moment is checked at every step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from twinflow.cluster.controller import events
from twinflow.cluster.controller.events import apply
from twinflow.cluster.controller.plan import (
    Action,
    Drain,
    Fence,
    Flip,
    Start,
    Stop,
    plan,
)
from twinflow.cluster.controller.state import ROLES, ClusterState, Desired, Worker
from twinflow.workers.role import Role


def worker(worker_id: str, epoch: int, **changes: object) -> Worker:
    """A worker that has served for long; the first part of its id is its role."""
    role: Role = next(role for role in ROLES if worker_id.startswith(role))
    served = Worker(
        worker_id=worker_id, epoch=epoch, role=role, phase="serving", since=-1000.0, address="a"
    )
    return replace(served, **changes)  # type: ignore[arg-type]  # by the caller's word


def cluster(*workers: Worker, **changes: object) -> ClusterState:
    """A cluster of these workers."""
    state = ClusterState(
        workers={one.worker_id: one for one in workers},
        next_epoch=max((one.epoch for one in workers), default=0) + 1,
    )
    return replace(state, **changes)  # type: ignore[arg-type]


def serving(**sizes: int) -> tuple[ClusterState, Desired]:
    """A cluster that is as wanted, with so many workers of each role."""
    names = [f"{role}-{n}" for role, size in sizes.items() for n in range(size)]
    found = [worker(name, epoch) for epoch, name in enumerate(names, 1)]
    return cluster(*found), Desired(sizes={role: sizes.get(role, 0) for role in ROLES})


@dataclass
class World:
    """Carries out what is planned.

    Attributes:
        state: as the controller sees it.
        desired: what is wanted.
        places: workers that fit, those that end included; None for any number.
        actions: everything that was done.
        served: the smallest number of workers that served since it was last reset.
    """

    state: ClusterState
    desired: Desired
    places: int | None = None
    actions: list[Action] = field(default_factory=list)
    served: int = 1 << 30

    def happen(self, event: events.Event) -> None:
        """Something happens."""
        self.state = apply(self.state, event)
        self.state.check_integrity()

    def tick(self, seconds: float = 1.0) -> None:
        """Time passes."""
        self.happen(events.Ticked(self.state.now + seconds, self._room()))

    def _room(self) -> Mapping[Role, int]:
        if self.places is None:
            return {}
        return dict.fromkeys(ROLES, max(0, self.places - len(self.state.workers)))

    def step(self) -> Action | None:
        """Carry out what is planned now, if anything is."""
        self.tick(0.2)
        action = plan(self.state, self.desired)
        if action is not None:
            self.actions.append(action)
            self._carry_out(action)
            # What was decided is in the state: it is not decided again.
            assert plan(self.state, self.desired) != action
        self.served = min(self.served, len(self.state.of_phase("serving")))
        return action

    def _carry_out(self, action: Action) -> None:
        match action:
            case Start(worker_id, role):
                assert worker_id not in self.state.workers
                assert not self.state.of_phase("starting")
                self.happen(events.Started(worker_id, role))
            case Flip(worker_id, epoch, role):
                self.happen(events.Flipped(worker_id, epoch, role))
            case Drain(worker_id, epoch, mode):
                assert not self.state.of_phase("starting", "leaving", "stopping", "lost")
                self.happen(events.DrainBegun(worker_id, epoch, mode))
            case Stop(worker_id, epoch):
                self.happen(events.StopOrdered(worker_id, epoch))
            case Fence(worker_id, epoch, why):
                self.happen(events.Died(worker_id, epoch, why))
                self.happen(events.Ended(worker_id, epoch))

    def progress(self) -> bool:
        """Let what goes on behind the actions go on by one step; whether there was anything."""
        for one in self.state.of_phase("starting", "leaving", "stopping"):
            match one.phase:
                case "starting":
                    self.happen(events.Ready(one.worker_id, one.epoch, "a"))
                case "leaving" if not one.released:
                    self.happen(events.Released(one.worker_id, one.epoch))
                case "stopping":
                    self.happen(events.Ended(one.worker_id, one.epoch))
                case _:
                    continue
            return True
        return False

    def kill(self, worker_id: str) -> None:
        """A worker dies."""
        one = self.state.workers[worker_id]
        self.happen(events.Died(worker_id, one.epoch, "killed"))

    def settle(self, limit: int = 400) -> None:
        """Go on until nothing is left to do."""
        for _ in range(limit):
            if self.step() is None and not self.progress():
                # Nothing but time may help: longer than any pause.
                self.tick(60.0)
                if self.step() is None:
                    return
        raise AssertionError(f"no end: {self.actions[-10:]}")

    @property
    def sizes(self) -> dict[Role, int]:
        """Serving workers of each role."""
        counts: dict[Role, int] = dict.fromkeys(ROLES, 0)
        for one in self.state.of_phase("serving"):
            counts[one.role] += 1
        return counts
