"""The thread of one lane: takes steps, one after another, and says what has come of them."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from twinflow.parallel.partition.backends.base import Backend
from twinflow.parallel.partition.control import Mode
from twinflow.parallel.partition.layout import Layout
from twinflow.runtime.executor import Executor
from twinflow.runtime.lanes.base import Step, StepOutcome
from twinflow.runtime.lanes.compute import compute


@dataclass(frozen=True, slots=True)
class LaneEnded:
    """A lane's thread has ended without being told to.

    Attributes:
        lane: which one.
        error: why.
    """

    lane: Mode
    error: BaseException


Report = Callable[[StepOutcome | LaneEnded], None]


class LaneThread:
    """Runs an executor on a thread of its own, where its backend puts it.

    Args:
        lane: which one it is.
        executor: computes; nobody else calls its `execute`.
        backend: moves the thread.
        report: told what has come of each step, on the lane's thread.
    """

    def __init__(self, lane: Mode, executor: Executor, backend: Backend, report: Report) -> None:
        self._lane = lane
        self._executor = executor
        self._backend = backend
        self._report = report
        self._orders: queue.SimpleQueue[tuple[Step, Layout] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._main, name=f"twinflow-{lane.value}-lane", daemon=True
        )
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether steps will still be computed."""
        return self._thread.is_alive()

    def begin(self, step: Step, layout: Layout) -> None:
        """Compute a step after those that were ordered before."""
        self._orders.put((step, layout))

    def close(self, timeout_s: float) -> bool:
        """End the thread after what was ordered; False if that takes too long."""
        self._orders.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            while (order := self._orders.get()) is not None:
                self._report(self._compute(*order))
        except BaseException as error:  # noqa: BLE001 - the thread's last words, whatever it was
            self._report(LaneEnded(self._lane, error))

    def _compute(self, step: Step, layout: Layout) -> StepOutcome:
        try:
            self._backend.enter(self._lane, layout)
        except Exception as error:  # noqa: BLE001 - the backend's failure, whatever it was
            return StepOutcome(step, error=error, stranded=True)
        outcome = compute(self._executor, step)
        try:
            self._backend.settle(self._lane)
        except Exception as error:  # noqa: BLE001 - likewise, unless computing has failed before
            return outcome if outcome.error else StepOutcome(step, error=error, stranded=True)
        return outcome
