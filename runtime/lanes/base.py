"""What an engine needs from whatever computes its steps.

The engine makes a step out of a plan, hands it over, and takes in what has come of it later. With
one lane there is never more than one step under way; with two there is one on each, and the engine
plans the next step of one lane while the other computes. Nothing here computes anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from twinflow.parallel.partition.control import Mode
from twinflow.runtime.executor import LayersDone, Work
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.outputs import SampledRun


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step that is handed over to be computed.

    Attributes:
        lane: that computes it; None if there is one lane for everything.
        work: its rows, at least one group.
        layer_groups: see `StepPlan`.
        on_layers: told about finished layers, on whatever thread computes.
    """

    lane: Mode | None
    work: tuple[Work, ...]
    layer_groups: int
    on_layers: LayersDone | None

    @property
    def requests(self) -> frozenset[str]:
        """Whose rows they are."""
        return frozenset(item.request.request_id for item in self.work)


@dataclass(frozen=True, slots=True, eq=False)
class StepOutcome:
    """What has come of a step.

    Attributes:
        step: which one.
        results: see `Executor.execute`; nothing if it failed.
        traffic: what experts did in it, by layer.
        error: why it failed, if it did.
    """

    step: Step
    results: Sequence[SampledRun] = ()
    traffic: Sequence[LayerTraffic] = ()
    error: Exception | None = None


class Lanes(Protocol):
    """Computes the steps of one engine; called on the engine's thread, except for `interrupt`."""

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
