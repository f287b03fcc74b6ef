"""What an engine needs from whatever computes its steps.

The engine makes a step out of a plan, hands it over, and takes in what has come of it later. With
one lane there is never more than one step under way; with two there is one on each, and the engine
plans the next step of one lane while the other computes. Nothing here computes anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from twinflow.parallel.partition.control import Mode
from twinflow.parallel.partition.layout import Layout
from twinflow.runtime.executor import LayersDone, Work
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.outputs import SampledRun
from twinflow.runtime.request import Request


class Step(msgspec.Struct, frozen=True, eq=False):
    """A step that is handed over to be computed.

    Attributes:
        lane: that computes it; None if there is one lane for everything.
        work: its rows, at least one group.
        layer_groups: see `StepPlan`.
        on_layers: told about finished layers, on whatever thread computes.
        decoding: requests that the decode lane will decode as soon as it is asked; told to the
            prefill lane, which shares the device with it.
        began: when it was handed over, on the engine's clock.
    """

    lane: Mode | None
    work: tuple[Work, ...]
    layer_groups: int = 1
    on_layers: LayersDone | None = None
    decoding: tuple[Request, ...] = ()
    began: float = 0.0

    @property
    def requests(self) -> frozenset[str]:
        """Whose rows they are."""
        return frozenset(item.request.request_id for item in self.work)


class StepOutcome(msgspec.Struct, frozen=True, eq=False):
    """What has come of a step.

    Attributes:
        step: which one.
        results: see `Executor.execute`; nothing if it failed.
        traffic: what experts did in it, by layer.
        error: why it failed, if it did.
        stranded: the division of the device has failed, and not the computing: nothing has come of
            the step, and it can be computed elsewhere.
    """

    step: Step
    results: Sequence[SampledRun] = ()
    traffic: Sequence[LayerTraffic] = ()
    error: Exception | None = None
    stranded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneFigures:
    """What two lanes have done since their start.

    Attributes:
        backend: name of what divides the device; `none` if that has failed meanwhile.
        layout: that was chosen last; None before the first step.
        switches: how often another one was chosen.
        steps: of each lane.
        seconds: that each lane has computed.
        both_seconds: in which both did at the same time.
        failure: why there is one lane now; empty while there are two.
    """

    backend: str
    layout: Layout | None = None
    switches: int = 0
    steps: Mapping[Mode, int] = field(default_factory=lambda: dict.fromkeys(Mode, 0))
    seconds: Mapping[Mode, float] = field(default_factory=lambda: dict.fromkeys(Mode, 0.0))
    both_seconds: float = 0.0
    failure: str = ""


class Lanes(Protocol):
    """Computes the steps of one engine; called on the engine's thread, except for `interrupt`."""

    @property
    def figures(self) -> LaneFigures | None:
        """What the lanes have done; None if there never was more than one."""
        ...

    def idle(self) -> Sequence[Mode | None]:
        """Lanes that can begin a step, in the order in which they should be asked for one."""
        ...

    def begin(self, step: Step) -> None:
        """Compute a step on its lane, which is idle.

        The step is the lane's until `over` has told of it: its requests, and the blocks of their
        tables, are left as they are meanwhile.
        """
        ...

    def over(self, timeout_s: float | None) -> Sequence[StepOutcome]:
        """Steps that are over and were not told of.

        Waits for the first one, if need be; a lane is idle again once its step has been told of.

        Args:
            timeout_s: how long to wait at most; None for as long as it takes.

        Returns:
            Nothing if the time was over or somebody interrupted the wait.

        Raises:
            EngineError: a lane has died, and no step of it will ever be over.
        """
        ...

    def interrupt(self) -> None:
        """Have `over` return soon, whether or not a step is over; from any thread."""
        ...

    def close(self) -> None:
        """Finish what is under way and give everything back."""
        ...
