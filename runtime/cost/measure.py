"""Runs real steps of an engine and takes their times.

The engine is the one that serves, but for its scheduler (`twinflow.runtime.cost.step_timer`).
Measuring is done in rounds over all steps, so that what disturbs the machine for a while does not
fall on one kind of step, and a step's time is the median of its rounds.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from twinflow.parallel.partition.backends.names import AUTO
from twinflow.parallel.partition.backends.registry import choose_backend
from twinflow.parallel.ranks.base import OneRank
from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.cost.dividers import Divider, Threads, Undivided, use_threads
from twinflow.runtime.cost.fit import Measurement
from twinflow.runtime.cost.measure_pairs import lane_place, measure_pairs, parts_of
from twinflow.runtime.cost.pair_fit import Paired
from twinflow.runtime.cost.shape import ModelShape
from twinflow.runtime.cost.step_timer import StepTimer, bounds_of
from twinflow.runtime.cost.steps import Steps, checking_steps, fitting_steps
from twinflow.runtime.engine_plan import EngineOptions, EnginePlan, plan_engine
from twinflow.runtime.runner import Runner
from twinflow.runtime.runner_loading import load_runner

LEAST_ROUNDS = 3
_MOST_ROUNDS = 15
# Of the progress that is told: steps alone; pairs are the rest.
_ALONE = 0.7

# Told how far measuring is, from 0 to 1.
Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of a model.

    Attributes:
        fingerprint: of the model, in its dtype.
        dtype: that it was run in.
        shape: its arithmetic.
        fitting: steps to fit a model to.
        checking: others, to see what the fit is worth.
        pairs: steps on two lanes; None if there were none.
        obstacle: the reason.
    """

    fingerprint: str
    dtype: str
    shape: ModelShape
    fitting: Sequence[Measurement]
    checking: Sequence[Measurement]
    pairs: Paired | None = None
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured.

    Attributes:
        plan: of the engine.
        runner: of the model, on all ranks.
        row_tile: rows are padded to a multiple of this.
        ranks: that compute the model together.
    """

    plan: EnginePlan
    runner: Runner
    row_tile: int
    ranks: int = 1


@dataclass(slots=True)
class _Case:
    """One kind of step on one share of the device, and how long it took each time."""

    steps: Steps
    share: float
    checks: bool
    loads: list[StepLoad] = field(default_factory=list)
    seconds: list[list[float]] = field(default_factory=list)

    def note(self, timed: Sequence[tuple[StepLoad, float]]) -> None:
        if not self.loads:
            self.loads = [load for load, _ in timed]
            self.seconds = [[] for _ in timed]
        for taken, (_, seconds) in zip(self.seconds, timed, strict=True):
            taken.append(seconds)

    def measurements(self) -> Iterator[Measurement]:
        for load, seconds in zip(self.loads, self.seconds, strict=True):
            yield Measurement(load, median(seconds), self.share)


class Rounds:
    """Measures one step after the other, round after round, at a pace that others set.

    Whoever compares predictions with steps of another engine lets the two take turns: how fast a
    machine is changes with what else it does, also in CPU time, because caches and memory are
    shared.

    Args:
        subject: the model; its KV is written to.
        divider: gives shares of the device; None to measure the whole of it only.
        clock: seconds.

    Raises:
        EngineError: a step failed; so may `advance`.
    """

    def __init__(
        self,
        subject: Subject,
        divider: Divider | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._subject = subject
        self._divider = divider or Undivided()
        self._timer = StepTimer(
            subject.plan, subject.runner, clock=clock, settle=self._divider.settle
        )
        self._cases = _cases(subject.plan, self._divider.shares)
        self._divider.use(1.0)
        self._turns = 0
        for case in self._cases[:: max(1, len(self._cases) // 4)]:
            self._timer.run(case.steps)  # allocations and code that is loaded at first use

    @property
    def steps(self) -> int:
        """Kinds of steps, of a round."""
        return len(self._cases)

    @property
    def done(self) -> float:
        """Rounds, and the part of the present one."""
        return self._turns / len(self._cases)

    def advance(self) -> None:
        """Measure the next step."""
        case = self._cases[self._turns % len(self._cases)]
        self._divider.use(case.share)
        try:
            case.note(self._timer.run(case.steps))
        finally:
            self._divider.use(1.0)
        self._turns += 1

    def advance_to(self, rounds: int) -> None:
        """Go on until so many rounds are done."""
        while self.done < rounds:
            self.advance()

    def measured(self) -> Measured:
        """What was found; at least one round is done."""
        subject, plan = self._subject, self._subject.plan
        shape = ModelShape.of(
            plan.model,
            element_bytes=plan.layout.torch_dtype.itemsize,
            ranks=subject.ranks,
            row_tile=subject.row_tile,
        )
        fitting, checking = (
            [each for case in self._cases if case.checks == checks for each in case.measurements()]
            for checks in (False, True)
        )
        return Measured(plan.fingerprint, plan.layout.dtype, shape, fitting, checking)


def measure(
    options: EngineOptions,
    *,
    threads: int,
    seconds: float,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Load a model and measure its steps, alone and in pairs.

    Args:
        options: of the engine.
        threads: that compute on a CPU, where fewer of them are measured as shares; 0 elsewhere,
            where parts are those of lanes.
        seconds: to go on measuring; every step is run three times in any case.
        progress: told how far it is.
        clock: seconds.

    Raises:
        CheckpointError: the model cannot be served.
        ConfigError: an option does not fit the model or the machine.
        EngineError: a step failed.
    """
    ranks = OneRank()
    plan = plan_engine(options, ranks)
    use_threads(threads)
    runner = load_runner(plan, ranks)
    place = lane_place(options.device, threads)
    divider = Threads(threads) if threads else parts_of(place)
    try:
        measured = measure_subject(
            Subject(plan, runner, runner.row_tile),
            divider,
            seconds=seconds,
            progress=lambda part: progress(_ALONE * part),
            clock=clock,
        )
    finally:
        divider.close()
    pairs, obstacle = measure_pairs(
        plan,
        runner,
        choose_backend(AUTO, place),
        progress=lambda part: progress(_ALONE + (1.0 - _ALONE) * part),
        clock=clock,
    )
    return replace(measured, pairs=pairs, obstacle=obstacle)


def measure_subject(
    subject: Subject,
    divider: Divider | None = None,
    *,
    seconds: float,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Measure the steps of a model that is loaded; arguments and errors as of `measure`.

    Args:
        subject: the model.
        divider: see `Rounds`.
        seconds: see `measure`.
        progress: likewise.
        clock: seconds.
    """
    rounds = Rounds(subject, divider, clock=clock)
    end = clock() + seconds
    while rounds.done < LEAST_ROUNDS or (clock() < end and rounds.done < _MOST_ROUNDS):
        for _ in range(rounds.steps):
            rounds.advance()
            progress(rounds.done / _MOST_ROUNDS)
    progress(1.0)
    return rounds.measured()


def _cases(plan: EnginePlan, shares: Sequence[float]) -> list[_Case]:
    bounds = bounds_of(plan)
    return [
        _Case(steps, share, checks)
        for share in shares
        for checks, kinds in ((False, fitting_steps(bounds)), (True, checking_steps(bounds)))
        for steps in kinds
    ]
