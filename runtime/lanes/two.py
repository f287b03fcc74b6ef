"""Two lanes of one device: prompts are computed on one while the other decodes.

    engine's thread     plan P1   plan D1   wait ... D1 is over: update, plan D2   wait ...
    prefill lane        |------------------ P1 ------------------------|
    decode lane                   |--- D1 ---|                         |--- D2 ---|

Both lanes are threads of this process, over one model and one KV cache. What a lane computes is
accounted for on the engine's thread alone, after it is over; so blocks have one owner, and a lane
reads KV of the other one only after the step that wrote it.
"""

import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from twinflow.parallel.partition.backends.base import Backend
from twinflow.parallel.partition.control import Mode
from twinflow.protos.errors import EngineError
from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.executor import Executor
from twinflow.runtime.lanes.base import LaneFigures, Step, StepOutcome
from twinflow.runtime.lanes.division import NOTHING, Division
from twinflow.runtime.lanes.thread import LaneEnded, LaneThread
from twinflow.runtime.lanes.view import decode_load

# A thread that has vanished without a word is noticed after so long.
_LOOK_S = 1.0
_CLOSE_S = 10.0


@dataclass(frozen=True, slots=True)
class _Running:
    """What a lane computes, and since when."""

    load: StepLoad
    since: float


class TwoLanes:
    """A thread for each lane; a `Lanes`.

    Args:
        executors: of each lane, over the same requests.
        backend: moves the lanes' threads from one layout to another.
        division: says which layout.
        num_layers: of the model.
        clock: seconds, monotonic.

    Attributes:
        figures: see `Lanes.figures`.
    """

    def __init__(
        self,
        executors: Mapping[Mode, Executor],
        backend: Backend,
        division: Division,
        *,
        num_layers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._division = division
        self._num_layers = num_layers
        self._clock = clock
        self._over: queue.SimpleQueue[StepOutcome | LaneEnded | None] = queue.SimpleQueue()
        self._running: dict[Mode, _Running] = {}
        self._threads = {
            lane: LaneThread(lane, executors[lane], backend, self._over.put) for lane in Mode
        }
        self.figures = LaneFigures(backend=backend.name)

    def idle(self) -> Sequence[Mode]:
        """See `Lanes.idle`.

        Prompts first: a decode step that begins with them knows what it shares the device with.
        """
        return [lane for lane in (Mode.PREFILL, Mode.DECODE) if lane not in self._running]

    def begin(self, step: Step) -> None:
        """See `Lanes.begin`."""
        lane = step.lane
        if lane is None or lane in self._running:
            raise ValueError(f"lane {lane} is not idle, or none of two")
        load = StepLoad.of([item.group for item in step.work])
        layout = self._division.layout(lane, load, self._beside(step))
        if layout != self.figures.layout:
            switches = self.figures.switches + (self.figures.layout is not None)
            self.figures = replace(self.figures, layout=layout, switches=switches)
        self._running[lane] = _Running(load, self._clock())
        self._threads[lane].begin(step, layout)

    def over(self, timeout_s: float | None) -> Sequence[StepOutcome]:
        """See `Lanes.over`."""
        end = None if timeout_s is None else self._clock() + timeout_s
        while True:
            left = _LOOK_S if end is None else min(end - self._clock(), _LOOK_S)
            try:
                found = self._over.get(timeout=max(left, 0.0))
            except queue.Empty:
                if end is not None and self._clock() >= end:
                    return ()
                self._check_alive()
                continue
            return self._taken_with(found)

    def interrupt(self) -> None:
        """See `Lanes.interrupt`."""
        self._over.put(None)

    def close(self) -> None:
        """See `Lanes.close`; a lane that does not end in time is left to itself."""
        for lane, thread in self._threads.items():
            if not thread.close(_CLOSE_S):
                structlog.get_logger().error("a lane did not stop", lane=lane.value)
        self._backend.close()
        self._division.close()

    def _beside(self, step: Step) -> StepLoad:
        """What the other lane computes, or will as soon as it is asked."""
        other = Mode.DECODE if step.lane is Mode.PREFILL else Mode.PREFILL
        running = self._running.get(other)
        if running is not None:
            return running.load
        return decode_load(step.decoding, self._num_layers) if step.decoding else NOTHING

    def _taken_with(self, found: StepOutcome | LaneEnded | None) -> list[StepOutcome]:
        """What was found and whatever else is there, without the interruptions."""
        outcomes: list[StepOutcome] = []
        while True:
            if isinstance(found, LaneEnded):
                raise EngineError(
                    f"the {found.lane.value} lane has ended: "
                    f"{type(found.error).__name__}: {found.error}"
                ) from found.error
            if found is not None:
                self._note(found)
                outcomes.append(found)
            try:
                found = self._over.get_nowait()
            except queue.Empty:
                return outcomes

    def _note(self, outcome: StepOutcome) -> None:
        lane = outcome.step.lane
        if lane is None:
            raise ValueError("a step of no lane is over")
        now, running = self._clock(), self._running.pop(lane)
        both = sum(now - max(other.since, running.since) for other in self._running.values())
        before = self.figures
        self.figures = replace(
            before,
            steps={**before.steps, lane: before.steps[lane] + 1},
            seconds={**before.seconds, lane: before.seconds[lane] + now - running.since},
            both_seconds=before.both_seconds + both,
        )

    def _check_alive(self) -> None:
        for lane in self._running:
            if not self._threads[lane].alive:
                raise EngineError(f"the {lane.value} lane has vanished in the middle of a step")
