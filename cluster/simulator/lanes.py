"""Two lanes of one simulated worker: who may be scheduled on which, and what a step costs there.

The engine is told of one lane at a time, and its policy sees what `runtime.lanes.view` shows of it,
as it does where lanes are real. Blocks and queues are common.

A step is priced anew each time the other lane begins or ends one, as to what is left of it: what a
lane gets of the device, and of its memory's bandwidth, depends on what the other lane is doing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from twinflow.cluster.simulator.config import Partition
from twinflow.parallel.partition.control import Controller, Decision, Mode
from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.cost.lanes import Lane, LaneTimes
from twinflow.runtime.engine import Engine
from twinflow.runtime.lanes.division import (
    NOTHING,
    ControlledDivision,
    Division,
    FixedDivision,
)
from twinflow.runtime.lanes.view import decode_load, decodes, lane_state
from twinflow.runtime.schedulers.base import Scheduler, SchedulerState
from twinflow.runtime.step_plan import StepPlan


class LaneScheduler:
    """Shows a policy the requests of one lane.

    Args:
        policy: decides.

    Attributes:
        lane: which one is being scheduled; None for all requests.
        elsewhere: requests in the other lane's step.
    """

    def __init__(self, policy: Scheduler) -> None:
        self._policy = policy
        self.lane: Mode | None = None
        self.elsewhere: frozenset[str] = frozenset()

    def plan(self, state: SchedulerState, now: float) -> StepPlan:
        """See `Scheduler.plan`."""
        if self.lane is None:
            return self._policy.plan(state, now)
        return self._policy.plan(lane_state(state, self.lane, self.elsewhere), now)


@dataclass(slots=True, eq=False)
class LaneStep:
    """A step that a lane is computing.

    Attributes:
        load: what it computes.
        requests: in it.
        layout_share: of the device, in the layout on which the lane runs.
        since: when its price changed last.
        left: part of it that was not computed then.
        share: of the device that it has had since then; less than the layout's while the other
            lane, which has not adopted that layout yet, is on some of the same processors.
        seconds: that all of it would take at the present price.
        used: seconds of whole devices that were spent on it until `since`.
    """

    load: StepLoad
    requests: frozenset[str]
    layout_share: float
    since: float
    left: float = 1.0
    share: float = 0.0
    seconds: float = 0.0
    used: float = 0.0

    @property
    def end(self) -> float:
        """When it is over if its price stays."""
        return self.since + self.left * self.seconds

    def advance(self, now: float) -> None:
        """Compute until now."""
        elapsed = now - self.since
        if elapsed > 0.0:
            self.left = max(self.left - elapsed / self.seconds, 0.0)
            self.used += self.share * elapsed
            self.since = now


@dataclass(frozen=True, slots=True)
class LaneDevice:
    """What the lanes of a worker run on.

    Attributes:
        partition: layouts, and who decides among them.
        times: how long steps take.
        num_layers: of the model.
    """

    partition: Partition
    times: LaneTimes
    num_layers: int


class Lanes:
    """Prices the steps of both lanes of a worker, and divides its device between them.

    Args:
        device: what they run on.
        engine: the worker's.
        on_decision: told every decision.

    Attributes:
        controller: decides; None for a split that stays.
        steps: what each lane computes now.
    """

    def __init__(
        self, device: LaneDevice, engine: Engine, on_decision: Callable[[Decision], None]
    ) -> None:
        grid, control = device.partition.grid, device.partition.control
        self._fixed = grid.layout(device.partition.split)
        self._times = device.times
        self._num_layers = device.num_layers
        self._engine = engine
        self.controller = Controller(control, grid, on_decision) if control else None
        self._division: Division = FixedDivision(self._fixed)
        if self.controller is not None:
            self._division = ControlledDivision(self.controller, device.times, engine.blocks.use)
        self.steps: dict[Mode, LaneStep] = {}

    @property
    def share_alone(self) -> float:
        """Of the device for decoding while no prompt is computed."""
        return 1.0 if self.controller is not None else self._fixed.decode_share

    def begin(self, lane: Mode, load: StepLoad, requests: frozenset[str], now: float) -> float:
        """A lane starts a step; returns how long it takes if nothing changes meanwhile."""
        other = self.steps.get(Mode.DECODE if lane is Mode.PREFILL else Mode.PREFILL)
        beside = other.load if other else NOTHING
        if other is None and lane is Mode.PREFILL:
            beside = self._decodes_to_come()
        layout = self._division.layout(lane, load, beside)
        share = layout.prefill_share if lane is Mode.PREFILL else layout.decode_share
        self.steps[lane] = LaneStep(load, requests, share, now)
        self._price(now)
        return self.steps[lane].seconds

    def resume(self, load: StepLoad, requests: frozenset[str], began: float) -> None:
        """The decode lane is in a step that began while there was no other lane."""
        self.steps[Mode.DECODE] = LaneStep(load, requests, self.share_alone, began)
        self._price(began)

    def end(self, lane: Mode, now: float) -> LaneStep:
        """A lane's step is over."""
        step = self.steps.pop(lane)
        step.advance(now)
        self._price(now)
        return step

    def _price(self, now: float) -> None:
        """From now on steps share the device as they are."""
        steps = list(self.steps.values())
        wanted = max(1.0, sum(step.layout_share for step in steps))
        for step in steps:
            step.advance(now)
            step.share = step.layout_share / wanted
        lanes = [Lane(step.load, step.share) for step in steps]
        prices = self._times.pair(*lanes) if len(lanes) > 1 else map(self._times.seconds, lanes)
        for step, seconds in zip(steps, prices, strict=True):
            step.seconds = seconds

    def _decodes_to_come(self) -> StepLoad:
        requests = [request for request in self._engine.queues.running if decodes(request)]
        return decode_load(requests, self._num_layers) if requests else NOTHING
