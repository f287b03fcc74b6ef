"""What is compared: the arms of Nexus's evaluation that a simulation can tell apart.

Two streams that share a device without being divided (its arms C and D) are not among them: nobody
has published how such streams slow each other down, so their price would be invented.
"""

from dataclasses import dataclass

from twinflow.cluster.simulator.config import Partition
from twinflow.parallel.partition.layout import Grid
from twinflow.runtime.lanes.options import LaneOptions

# More than any prompt of the load.
_WHOLE_PROMPT = 16384
_LANE_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to run both phases on one device.

    Attributes:
        name: in tables.
        chunk: rows of a step.
        order: in which prompts are computed.
        lanes: how the device is divided; None for one lane.
        tbt_objective: seconds between two tokens that chunks are cut for; None for none.
    """

    name: str
    chunk: int
    order: str = "fcfs"
    lanes: Partition | None = None
    tbt_objective: float | None = None


# What `twinflow serve` does unless told otherwise.
BASE = Arm("B chunked 1024", 1024)

ONE_LANE = (
    BASE,
    Arm("A whole prompts", _WHOLE_PROMPT),
    Arm("B chunked 512", 512),
    Arm("B chunked 2048", 2048),
    Arm("B chunked 1024, SPF", 1024, "spf"),
)


def deadline_aware(objective: float) -> Arm:
    """One lane, with the largest chunks that keep the gaps between tokens within an objective."""
    name = f"B deadlines of {1000 * objective:.0f} ms"
    return Arm(name, _LANE_CHUNK, tbt_objective=objective)


def fixed(grid: Grid, prefill: int, order: str) -> Arm:
    """Two lanes whose split stays: `prefill` processors for prompts."""
    letter, suffix = ("H", ", SPF") if order == "spf" else ("E", "")
    partition = Partition(grid, None, grid.splits.index(prefill))
    return Arm(f"{letter} fixed at {prefill}{suffix}", _LANE_CHUNK, order, partition)


def divided(grid: Grid, order: str) -> Arm:
    """Two lanes that the controller divides."""
    letter, suffix = ("G", ", SPF") if order == "spf" else ("F", "")
    partition = Partition(grid, LaneOptions().control(grid), grid.middle)
    return Arm(f"{letter} divided anew{suffix}", _LANE_CHUNK, order, partition)
