"""Measures steps on two lanes side by side, where the device can be divided.

In rounds over all pairs, as steps are measured alone, and on a few of the device's splits. Lanes
are measured by the backend that a worker with `--lanes auto` would have.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from statistics import median

from twinflow.parallel.partition.backends.base import Place
from twinflow.parallel.partition.backends.names import AUTO
from twinflow.parallel.partition.backends.registry import Choice, choose_backend
from twinflow.parallel.partition.control import Mode
from twinflow.parallel.partition.layout import Grid, Layout
from twinflow.runtime.cost.dividers import Divider, Parts, Undivided
from twinflow.runtime.cost.lanes import Lane
from twinflow.runtime.cost.pair_fit import Paired, PairMeasurement
from twinflow.runtime.cost.pair_timer import PairTimer, PairTimes
from twinflow.runtime.cost.step_timer import bounds_of
from twinflow.runtime.cost.steps import Steps, checking_pairs, fitting_pairs
from twinflow.runtime.engine_plan import EnginePlan
from twinflow.runtime.model_runner import ModelRunner

_ROUNDS = 3
# Rows of the longest prompt: it takes several decode steps.
_CPU_CHUNK = 128
_GPU_CHUNK = 2048

Key = tuple[Steps, Layout]


def lane_place(device: str, threads: int) -> Place:
    """What lanes would divide: the first cores that this process may use, or a GPU."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return Place(device, tuple(allowed[:threads]))


def parts_of(place: Place) -> Divider:
    """The parts that lanes of a device would have; the whole of it if it cannot be divided."""
    backend = choose_backend(AUTO, place).backend
    return Parts(backend, place.device) if backend.grid is not None else Undivided()


def measure_pairs(
    plan: EnginePlan,
    runner: ModelRunner,
    choice: Choice,
    *,
    progress: Callable[[float], None],
    clock: Callable[[], float],
) -> tuple[Paired | None, str]:
    """Measure pairs, or say why there are none.

    Args:
        plan: of the engine.
        runner: of the model; its KV is written to.
        choice: what divides the device; closed afterwards.
        progress: told how far it is, from 0 to 1.
        clock: seconds.

    Raises:
        EngineError: a lane has died.
        ConfigError: the backend failed.
    """
    backend, grid, bounds = choice.backend, choice.backend.grid, bounds_of(plan)
    chunk = _CPU_CHUNK if plan.options.device == "cpu" else _GPU_CHUNK
    kinds = fitting_pairs(bounds, chunk), checking_pairs(bounds, chunk)
    if grid is None or not all(kinds):
        backend.close()
        return None, choice.reason or "the limits leave no room for a prompt beside decoding"
    cases = list(product((*kinds[0], *kinds[1]), _layouts(grid)))
    found: defaultdict[Key, list[Mapping[Mode, PairTimes]]] = defaultdict(list)
    timer = PairTimer(plan, runner, backend, clock=clock)
    try:
        timer.run(*cases[0])  # threads and memory that are taken at first use
        for number, case in enumerate(cases * _ROUNDS, start=1):
            found[case].append(timer.run(*case))
            progress(number / (len(cases) * _ROUNDS))
    finally:
        timer.close()
    fitting, checking = (
        [each for case in cases if case[0] in steps for each in _measurements(case[1], found[case])]
        for steps in kinds
    )
    return Paired(backend.name, grid, fitting, checking), ""


def _layouts(grid: Grid) -> list[Layout]:
    """The first, the middle and the last one, as far as they differ."""
    indices = {0, grid.middle, len(grid.splits) - 1}
    return [grid.layout(index) for index in sorted(indices)]


def _measurements(
    layout: Layout, rounds: list[Mapping[Mode, PairTimes]]
) -> Iterator[PairMeasurement]:
    """Of both lanes, the medians of all rounds."""
    shares = {Mode.PREFILL: layout.prefill_share, Mode.DECODE: layout.decode_share}
    lanes = {mode: Lane(rounds[0][mode].load, share) for mode, share in shares.items()}
    for mode, other in ((Mode.PREFILL, Mode.DECODE), (Mode.DECODE, Mode.PREFILL)):
        alone = median(seconds for each in rounds for seconds in each[mode].alone)
        beside = median(seconds for each in rounds for seconds in each[mode].beside)
        yield PairMeasurement(lanes[mode], lanes[other], alone, beside)
