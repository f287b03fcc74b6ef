"""What can be chosen about lanes, and what came of it. Values only; loads no torch."""

from dataclasses import dataclass
from pathlib import Path

from twinflow.parallel.partition.backends.names import NONE
from twinflow.parallel.partition.control import DECODE_SLACK, PREFILL_SLACK, ControlConfig
from twinflow.parallel.partition.layout import Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneOptions:
    """What an operator may choose about lanes.

    Attributes:
        backend: name of what divides the device; `auto` for what suits it, `none` for one lane.
        prefill_slack: what a prefill step may take beside decoding, in times of what it takes
            alone.
        decode_slack: what a decode step may take beside prefill, likewise.
        cores: processor cores that lanes of a CPU may use.
        decisions: file for every decision; None for none.
    """

    backend: str = NONE
    prefill_slack: float = PREFILL_SLACK
    decode_slack: float = DECODE_SLACK
    cores: tuple[int, ...] = ()
    decisions: Path | None = None

    def control(self, grid: Grid) -> ControlConfig:
        """How a device with these layouts is divided.

        A split changes by two layouts or more: one that is next to the present one differs by
        less than batches do from step to step. Three layouts or fewer have no such band, for with
        it the middle one would never be left.
        """
        few = len(grid.splits) <= 3
        delta = 0 if few else 2 * (grid.splits[1] - grid.splits[0])
        return ControlConfig(
            prefill_slack=self.prefill_slack, decode_slack=self.decode_slack, delta=delta
        )


@dataclass(frozen=True, slots=True)
class LaneReport:
    """Which lanes an engine has, for operators.

    Attributes:
        wanted: backend that was asked for.
        backend: that divides the device; `none` for one lane.
        description: what is divided, and by which rule.
        reason: why there is one lane although two were asked for; empty if there are two, or were
            not asked for.
    """

    wanted: str = NONE
    backend: str = NONE
    description: str = ""
    reason: str = ""
