"""One lane: every step is computed on the engine's own thread, with the whole device."""

from collections.abc import Sequence

from twinflow.runtime.executor import Executor
from twinflow.runtime.lanes.base import Step, StepOutcome
from twinflow.runtime.lanes.compute import compute


class OneLane:
    """Computes a step when it is handed over; a `Lanes`.

    Args:
        executor: computes.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._over: list[StepOutcome] = []

    @property
    def figures(self) -> None:
        """See `Lanes.figures`."""

    def idle(self) -> Sequence[None]:
        """See `Lanes.idle`."""
        return (None,)

    def begin(self, step: Step) -> None:
        """See `Lanes.begin`."""
        self._over.append(compute(self._executor, step))

    def over(self, timeout_s: float | None) -> Sequence[StepOutcome]:
        """See `Lanes.over`; there is nothing to wait for."""
        over, self._over = self._over, []
        return over

    def interrupt(self) -> None:
        """See `Lanes.interrupt`."""

    def close(self) -> None:
        """See `Lanes.close`."""
