"""What can be done to a deployment: to whom, what, and at which moment. Values only."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from twinflow.workers.fault_points import Point


class Target(Enum):
    """Who or what is hit."""

    PREFILL = "prefill"
    """A prefill worker."""

    DECODE = "decode"
    """A decode worker."""

    RANK = "rank"
    """A rank other than the first one of a decode worker that has several."""

    GATEWAY = "gateway"
    """The gateway."""

    CONTROLLER = "controller"
    """The command that starts and watches everything."""

    LINK = "link"
    """The data connection between a prefill and a decode worker."""

    SESSION = "session"
    """Every connection to a decode worker's server: the gateway's, and those of hand-offs."""


class Action(Enum):
    """What is done."""

    KILL = "kill"
    """SIGKILL."""

    TERMINATE = "terminate"
    """SIGTERM."""

    FREEZE = "freeze"
    """SIGSTOP, for ever."""

    BLIP = "blip"
    """SIGSTOP, and SIGCONT after 2 s: nobody may be given up for that."""

    SLOW = "slow"
    """A tenth of a processor for 10 s, as from a quota: nobody may be given up for that either."""

    CORRUPT = "corrupt"
    """A bit of a block flips on the way."""

    CUT = "cut"
    """The connection breaks in the middle of a hand-off."""

    DELAY = "delay"
    """Blocks are on the way for 3 s."""

    STALL = "stall"
    """Blocks are on the way for longer than anybody waits for them."""

    PARTITION = "partition"
    """No packet gets through in either direction, for 15 s."""

    ONE_WAY = "one-way"
    """Packets from the worker are lost, those to it arrive, for 15 s."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One cell of the matrix.

    Attributes:
        target: value of a `Target`.
        action: value of an `Action`.
        point: value of a `Point`.
    """

    target: str
    action: str
    point: str

    def __str__(self) -> str:
        return f"{self.action} {self.target} at {self.point}"


_PROCESS = (Action.KILL, Action.TERMINATE, Action.FREEZE, Action.BLIP)
_WORKER = (*_PROCESS, Action.SLOW)
_ACTIONS: dict[Target, tuple[Action, ...]] = {
    Target.PREFILL: _WORKER,
    Target.DECODE: _WORKER,
    Target.RANK: (Action.KILL, Action.FREEZE, Action.BLIP),
    # A gateway or a controller that is gone takes the deployment along, and nobody watches them.
    Target.GATEWAY: (Action.KILL, Action.BLIP),
    Target.CONTROLLER: (Action.KILL, Action.TERMINATE, Action.BLIP),
    Target.LINK: (Action.CORRUPT, Action.CUT, Action.DELAY, Action.STALL),
    Target.SESSION: (Action.PARTITION, Action.ONE_WAY),
}
_OF_REQUESTS = (Point.QUEUED, Point.PREFILL, Point.HAND_OFF, Point.DECODE)
_POINTS: dict[Target, tuple[Point, ...]] = {
    # Where it computes prompts only, a prefill worker gets no further.
    Target.PREFILL: (
        *(Point.START_UP, Point.QUEUED, Point.PREFILL, Point.HAND_OFF),
        Point.DRAINING,
    ),
    # And a decode worker that is handed its prompts computes none.
    Target.DECODE: (Point.START_UP, Point.QUEUED, Point.HAND_OFF, Point.DECODE, Point.DRAINING),
    Target.RANK: (Point.QUEUED, Point.HAND_OFF, Point.DECODE),
    Target.GATEWAY: _OF_REQUESTS,
    Target.CONTROLLER: _OF_REQUESTS,
    Target.LINK: (Point.HAND_OFF,),
    Target.SESSION: (Point.QUEUED, Point.HAND_OFF, Point.DECODE),
}
# After these nothing serves until the command is run again.
_FATAL = frozenset(
    {
        (Target.GATEWAY, Action.KILL),
        (Target.CONTROLLER, Action.KILL),
        (Target.CONTROLLER, Action.TERMINATE),
    }
)
# These are given up and replaced.
_DEADLY = frozenset(
    {Action.KILL, Action.TERMINATE, Action.FREEZE, Action.PARTITION, Action.ONE_WAY}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is done to a deployment.

    Attributes:
        target: who is hit.
        action: what is done.
        point: when.
        victim: which one of its pool.
        skip: times that the moment passes before.
        seed: of the load that it is done under.
        migrate: where a worker drains, its requests move instead of finishing.
    """

    target: Target
    action: Action
    point: Point
    victim: int = 0
    skip: int = 0
    seed: int = 0
    migrate: bool = False

    @property
    def cell(self) -> Cell:
        """Its place in the matrix."""
        return Cell(self.target.value, self.action.value, self.point.value)

    @property
    def is_fatal(self) -> bool:
        """Whether the whole deployment ends of it."""
        return (self.target, self.action) in _FATAL

    @property
    def loses_a_worker(self) -> bool:
        """Whether a worker is given up for it, and replaced."""
        of_worker = self.target in (Target.PREFILL, Target.DECODE, Target.RANK, Target.SESSION)
        return of_worker and self.action in _DEADLY

    @property
    def is_sudden(self) -> bool:
        """Whether it is noticed without waiting for a sign of life that does not come."""
        return self.action in (Action.KILL, Action.TERMINATE)

    @property
    def trigger(self) -> Target:
        """The worker whose request is watched for the moment."""
        if self.target is Target.LINK:
            return Target.PREFILL
        if self.target in (Target.GATEWAY, Target.CONTROLLER):
            return Target.DECODE if self.point is Point.DECODE else Target.PREFILL
        return Target.PREFILL if self.target is Target.PREFILL else Target.DECODE


def possible_cells() -> Iterator[tuple[Target, Action, Point]]:
    """Every target, action and moment that go together, in a fixed order."""
    for target, actions in _ACTIONS.items():
        for action in actions:
            for point in _POINTS[target]:
                yield target, action, point
