"""Two lanes for as long as their device can be divided, and one from then on.

What divides the device is tried at the start, and may fail later all the same: a container's
cores are changed, a driver refuses. A step that it fails is not lost, because nothing has come of
it: once the other lane's step is over too, it is computed again on the only lane that there is from
now on, with the same rows, and so with the same tokens. Nothing is divided again: what has failed
once would fail again in the middle of somebody's answer.

A failure of the computing itself is the step's, here as on one lane.
"""

from collections.abc import Sequence
from dataclasses import replace

import structlog

from twinflow.parallel.partition.backends.names import NONE
from twinflow.parallel.partition.control import Mode
from twinflow.runtime.lanes.base import LaneFigures, Step, StepOutcome
from twinflow.runtime.lanes.one import OneLane
from twinflow.runtime.lanes.two import TwoLanes


class FallbackLanes:
    """See the module; a `Lanes`.

    Args:
        two: compute until one of them cannot be put where its step is to run.
        one: computes afterwards, with hidden states and workspaces of the lane for prompts.
    """

    def __init__(self, two: TwoLanes, one: OneLane) -> None:
        self._two = two
        self._one = one
        self._stranded: list[Step] = []
        self._fallen = False
        self._failure = ""

    @property
    def figures(self) -> LaneFigures:
        """See `Lanes.figures`: those of the two lanes stay, and say why there is one now."""
        figures = self._two.figures
        if not self._failure:
            return figures
        return replace(figures, backend=NONE, layout=None, failure=self._failure)

    def idle(self) -> Sequence[Mode | None]:
        """See `Lanes.idle`: none between the failure and the end of the other lane's step."""
        if self._fallen:
            return self._one.idle()
        return () if self._stranded else self._two.idle()

    def begin(self, step: Step) -> None:
        """See `Lanes.begin`."""
        (self._one if self._fallen else self._two).begin(step)

    def over(self, timeout_s: float | None) -> Sequence[StepOutcome]:
        """See `Lanes.over`."""
        if self._fallen:
            return self._one.over(timeout_s)
        outcomes = self._two.over(timeout_s)
        for outcome in outcomes:
            if outcome.stranded:
                self._strand(outcome)
        over = [outcome for outcome in outcomes if not outcome.stranded]
        if self._stranded and len(self._two.idle()) == len(Mode):
            over += self._fall_back()
        return over

    def interrupt(self) -> None:
        """See `Lanes.interrupt`."""
        self._two.interrupt()

    def close(self) -> None:
        """See `Lanes.close`."""
        if not self._fallen:
            self._two.close()
        self._one.close()

    def _strand(self, outcome: StepOutcome) -> None:
        self._stranded.append(outcome.step)
        self._failure = self._failure or (
            f"the device could not be divided any more: {outcome.error}"
        )

    def _fall_back(self) -> Sequence[StepOutcome]:
        """End both lanes and compute what they have left."""
        structlog.get_logger().warning(
            "one lane for prompts and decoding from now on",
            backend=self._two.figures.backend,
            reason=self._failure,
        )
        self._fallen = True
        try:
            self._two.close()
        except Exception:  # noqa: BLE001 - a backend that has failed may fail to give back, too
            structlog.get_logger().exception("the device's parts were not given back")
        for step in self._stranded:
            self._one.begin(step)
        self._stranded = []
        return self._one.over(None)
