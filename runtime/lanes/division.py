"""On which layout a lane's next step runs; asked each time a step is handed over."""

from collections.abc import Callable
from typing import Protocol

from twinflow.parallel.partition.control import Controller, Inputs, Mode
from twinflow.parallel.partition.layout import Layout
from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.cost.forecast import StepForecast
from twinflow.runtime.cost.lanes import LaneTimes

NOTHING = StepLoad((), 0)


class Division(Protocol):
    """Divides a device between two lanes."""

    def layout(self, lane: Mode, load: StepLoad, other: StepLoad) -> Layout:
        """What a lane runs on from its launch now.

        Args:
            lane: which one.
            load: the step that it begins.
            other: the step that the other lane computes, or is about to begin.
        """
        ...

    def close(self) -> None:
        """Nothing is asked any more."""
        ...


class FixedDivision:
    """A split that stays, whoever has work; a `Division`.

    Args:
        layout: the split.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def layout(self, lane: Mode, load: StepLoad, other: StepLoad) -> Layout:
        """See `Division.layout`."""
        return self._layout

    def close(self) -> None:
        """See `Division.close`."""


class ControlledDivision:
    """Asks a controller; a `Division`.

    Args:
        controller: decides.
        times: of steps on parts of the device; None if they are not known.
        kv_use: share of KV blocks that are not idle.
        on_close: called when no decision follows.

    Attributes:
        controller: see above.
    """

    def __init__(
        self,
        controller: Controller,
        times: LaneTimes | None,
        kv_use: Callable[[], float],
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.controller = controller
        self._times = times
        self._kv_use = kv_use
        self._on_close = on_close

    def layout(self, lane: Mode, load: StepLoad, other: StepLoad) -> Layout:
        """See `Division.layout`."""
        prefill, decode = (load, other) if lane is Mode.PREFILL else (other, load)
        inputs = Inputs(bool(prefill.segments), bool(decode.segments), self._kv_use())
        forecast = StepForecast(self._times, prefill, decode) if self._times is not None else None
        self.controller.decide(inputs, forecast)
        return self.controller.adopt(lane)

    def close(self) -> None:
        """See `Division.close`."""
        self._on_close()
