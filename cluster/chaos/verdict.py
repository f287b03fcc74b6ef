"""What is told of one fault: the history of it, boiled down to what a table and a later run need.

It survives in a file, so that a matrix of hours can be interrupted and go on.
"""

import msgspec

from twinflow.cluster.chaos.checker import Violation
from twinflow.cluster.chaos.faults import Cell, Fault
from twinflow.cluster.chaos.runner import Outcome


class Ending(msgspec.Struct, frozen=True):
    """How a request ended that did not end well.

    Attributes:
        request: its name.
        end: value of an `EndKind`.
        detail: what the server said.
    """

    request: str
    end: str
    detail: str


class Wrong(msgspec.Struct, frozen=True):
    """What must not have been.

    Attributes:
        kind: value of a `Kind`.
        detail: about it.
    """

    kind: str
    detail: str

    @classmethod
    def of(cls, violation: Violation) -> "Wrong":
        """Of what the checker found."""
        return cls(violation.kind.value, violation.detail)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One fault.

    Attributes:
        seed: that it is of.
        target: value of a `Target`.
        action: value of an `Action`.
        point: value of a `Point`.
        skip: times that the moment passed before.
        load_seed: of the load.
        is_fatal: the deployment ended of it.
        loses_a_worker: a worker was given up for it.
        machine_load: how many processes wanted to run on the machine, over the last minute.
        seconds: that it took.
        requests: of the load.
        succeeded: of them.
        notice_s: from the fault until it was noticed.
        recovery_s: from the fault until everything was as wanted again.
        ends: of the requests that did not end well.
        violations: what must not have been.
    """

    seed: int
    target: str
    action: str
    point: str
    skip: int
    load_seed: int
    is_fatal: bool
    loses_a_worker: bool
    machine_load: float
    seconds: float
    requests: int
    succeeded: int
    notice_s: float | None
    recovery_s: float | None
    ends: tuple[Ending, ...]
    violations: tuple[Wrong, ...]

    @property
    def cell(self) -> Cell:
        """Its place in the matrix."""
        return Cell(self.target, self.action, self.point)

    @classmethod
    def of(cls, outcome: Outcome, *, seconds: float, machine_load: float) -> "Verdict":
        """Of what came of a fault.

        Args:
            outcome: that.
            seconds: that it took.
            machine_load: of the machine meanwhile.
        """
        fault, history = outcome.fault, outcome.history
        return cls(
            seed=outcome.seed,
            target=fault.target.value,
            action=fault.action.value,
            point=fault.point.value,
            skip=fault.skip,
            load_seed=fault.seed,
            is_fatal=fault.is_fatal,
            loses_a_worker=fault.loses_a_worker,
            machine_load=round(machine_load, 2),
            seconds=round(seconds, 1),
            requests=len(history.requests),
            succeeded=outcome.num_finished,
            notice_s=history.notice_s,
            recovery_s=history.recovery_s,
            ends=tuple(
                Ending(one.name, end.kind.value, end.detail)
                for one in history.requests
                for end in one.ends
                if not one.finished
            ),
            violations=tuple(Wrong.of(violation) for violation in outcome.violations),
        )


def key_of(seed: int, fault: Fault | Verdict) -> tuple[int, Cell]:
    """What distinguishes a fault from all others of a matrix."""
    return seed, fault.cell
