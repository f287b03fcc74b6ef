"""Finds what lanes cost each other from steps that were run in pairs, and what that is worth.

Alone and beside others steps ran on the same processors in turns, so that their ratio is free of
what the cost model does not know about either; the errors that are reported are those of the
predicted seconds, and contain it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from twinflow.parallel.partition.layout import Grid
from twinflow.runtime.cost.contention import Slowdown, fit_contention
from twinflow.runtime.cost.fit import Accuracy
from twinflow.runtime.cost.lanes import Lane, LaneTimes
from twinflow.runtime.cost.model import CostModel
from twinflow.runtime.cost.profile import LaneAccuracy


@dataclass(frozen=True, slots=True)
class PairMeasurement:
    """A step of one lane, which ran alone and beside steps of the other lane.

    Attributes:
        lane: the step, and where it ran.
        other: the steps beside it.
        alone: seconds while the other lane did nothing.
        beside: seconds while it computed all the time.
    """

    lane: Lane
    other: Lane
    alone: float
    beside: float


@dataclass(frozen=True, slots=True)
class Paired:
    """What was measured of steps side by side.

    Attributes:
        backend: that divided the device.
        grid: its layouts.
        fitting: steps to fit to.
        checking: others.
    """

    backend: str
    grid: Grid
    fitting: Sequence[PairMeasurement]
    checking: Sequence[PairMeasurement]


def fit_pairs(times: CostModel, paired: Paired) -> tuple[CostModel, LaneAccuracy]:
    """Add contention to a model that knows what shares are worth.

    Raises:
        ValueError: it does not, or nothing was measured.
    """
    fitted = replace(
        times, contention=fit_contention([_slowdown(times, each) for each in paired.fitting])
    )
    accuracy = LaneAccuracy(
        backend=paired.backend,
        grid=paired.grid,
        held_out=_accuracy(fitted, paired.checking),
        fitted=_accuracy(fitted, paired.fitting),
    )
    return fitted, accuracy


def _slowdown(times: CostModel, pair: PairMeasurement) -> Slowdown:
    use, other = (
        times.seconds_and_use(lane.load, lane.share)[1] for lane in (pair.lane, pair.other)
    )
    return Slowdown(use, other, pair.beside / pair.alone)


def _accuracy(times: CostModel, pairs: Sequence[PairMeasurement]) -> Accuracy:
    lanes = LaneTimes(times)
    return Accuracy.of_pairs((lanes.seconds(each.lane, each.other), each.beside) for each in pairs)
