"""Runs real steps of an engine and takes their times.

The engine is the one that serves, with a scheduler that plans what it is told: a step is measured
with all that belongs to it, from planning to the sampled tokens. Prompts are random tokens, so that
they spread over experts. Measuring is done in rounds over all steps, so that what disturbs the
machine for a while does not fall on one kind of step, and a step's time is the median of its
rounds.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median

import torch

from twinflow.parallel.ranks.base import OneRank
from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.cost.fit import Measurement
from twinflow.runtime.cost.shape import ModelShape
from twinflow.runtime.cost.steps import Bounds, Steps, checking_steps, fitting_steps
from twinflow.runtime.engine import Engine
from twinflow.runtime.engine_plan import EngineOptions, EnginePlan, plan_engine
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.model_executor import ModelExecutor
from twinflow.runtime.request import Request
from twinflow.runtime.runner import Runner
from twinflow.runtime.runner_loading import load_runner
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.schedulers.base import SchedulerState
from twinflow.runtime.step_plan import RowGroup, RowKind, StepPlan

LEAST_ROUNDS = 3
_MOST_ROUNDS = 15
# Engines refuse requests that might not fit.
_SAMPLING_ROOM = 32
_SAMPLING = SamplingParams(temperature=0.0, max_tokens=_SAMPLING_ROOM, ignore_eos=True, seed=0)

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
    """

    fingerprint: str
    dtype: str
    shape: ModelShape
    fitting: Sequence[Measurement]
    checking: Sequence[Measurement]


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


class _Script:
    """A scheduler that plans what it is told."""

    def __init__(self) -> None:
        self.next = StepPlan()

    def plan(self, state: SchedulerState, now: float) -> StepPlan:
        return self.next


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


class StepTimer:
    """Takes times of single steps.

    Args:
        plan: of the engine.
        runner: of the model.
        seed: of the tokens of prompts.
        clock: seconds.
    """

    def __init__(
        self,
        plan: EnginePlan,
        runner: Runner,
        *,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._script = _Script()
        self._model = plan.model
        self._random = Random(seed)
        self._clock = clock
        self._cuda = plan.options.device != "cpu"
        vocab_size = plan.model.vocab_size
        executor = ModelExecutor(
            runner,
            Sampler(vocab_size, plan.options.device),
            vocab_size=vocab_size,
            layers_per_unit=0,
        )
        blocks = BlockManager(
            plan.config.num_blocks,
            plan.config.block_size,
            model_fingerprint="",
            layout_digest="",
            enable_prefix_caching=False,
        )
        self.engine = Engine(
            plan.config,
            executor,
            blocks,
            self._script,
            num_layers=plan.model.num_layers,
            clock=clock,
        )

    def run(self, steps: Steps) -> list[tuple[StepLoad, float]]:
        """Compute a batch; its loads and seconds, of one step or of two."""
        decoders = [self._request(f"d{i}", steps.context) for i in range(steps.batch)]
        for request in decoders:
            request.output_token_ids.append(self._token())
        if decoders:
            # Admission and the first touch of memory are not part of decoding.
            self._step(self._decodes(decoders), 1)
        layers = self._model.num_layers
        cuts = [(0, layers)]
        if steps.layered and layers > 1:
            cuts = [(0, layers // 2), (layers // 2, layers)]
        if steps.rows:
            self._request("p", steps.start + steps.rows)
        timed = []
        for first, end in cuts:
            groups = self._decodes(decoders)
            if steps.rows:
                groups.append(
                    RowGroup(
                        request_id="p",
                        token_start=steps.start,
                        token_count=steps.rows,
                        layer_start=first,
                        layer_end=end,
                        kind=RowKind.PREFILL,
                        samples=end == layers,
                    )
                )
            timed.append((StepLoad.of(groups), self._step(groups, len(cuts))))
        for request_id in ("p", *(request.request_id for request in decoders)):
            self.engine.abort(request_id)
        return timed

    def _request(self, request_id: str, length: int) -> Request:
        prompt = [self._token() for _ in range(length)]
        request = Request(request_id=request_id, prompt_token_ids=prompt, params=_SAMPLING)
        self.engine.add_request(request)
        return request

    def _token(self) -> int:
        return self._random.randrange(self._model.vocab_size)

    def _decodes(self, requests: Sequence[Request]) -> list[RowGroup]:
        return [
            RowGroup(
                request_id=request.request_id,
                token_start=request.num_tokens - 1,
                token_count=1,
                layer_start=0,
                layer_end=self._model.num_layers,
                kind=RowKind.DECODE,
                samples=True,
            )
            for request in requests
        ]

    def _step(self, groups: Sequence[RowGroup], layer_groups: int) -> float:
        self._script.next = StepPlan(tuple(groups), layer_groups=layer_groups)
        began = self._clock()
        self.engine.step()
        if self._cuda:
            torch.cuda.synchronize()
        taken = self._clock() - began
        failures = self.engine.take_outputs().failures
        if failures:
            raise failures[0][1]
        return taken


def measure(
    options: EngineOptions,
    *,
    threads: int,
    seconds: float,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Load a model and measure its steps.

    Args:
        options: of the engine.
        threads: that compute on a CPU, where fewer of them are measured as shares; 0 elsewhere,
            where only the whole device is.
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
    subject = Subject(plan, runner, runner.row_tile)
    return measure_subject(
        subject, threads=threads, seconds=seconds, progress=progress, clock=clock
    )


def measure_subject(
    subject: Subject,
    *,
    threads: int = 0,
    seconds: float,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Measure the steps of a model that is loaded; arguments and errors as of `measure`.

    Args:
        subject: the model.
        threads: of which fewer are measured as shares; 0 to measure the whole device only.
        seconds: see `measure`.
        progress: likewise.
        clock: seconds.
    """
    plan = subject.plan
    timer = StepTimer(plan, subject.runner, clock=clock)
    cases = _cases(plan, threads)
    for case in cases[:: max(1, len(cases) // 4)]:
        timer.run(case.steps)  # allocations and code that is loaded at first use
    end = clock() + seconds
    for done in range(_MOST_ROUNDS):
        for index, case in enumerate(cases):
            use_threads(round(threads * case.share))
            case.note(timer.run(case.steps))
            progress((done + index / len(cases)) / _MOST_ROUNDS)
        if done + 1 >= LEAST_ROUNDS and clock() >= end:
            break
    use_threads(threads)
    progress(1.0)
    element = plan.layout.torch_dtype.itemsize
    shape = ModelShape.of(
        plan.model, element_bytes=element, ranks=subject.ranks, row_tile=subject.row_tile
    )
    return Measured(
        plan.fingerprint,
        plan.layout.dtype,
        shape,
        [each for case in cases if not case.checks for each in case.measurements()],
        [each for case in cases if case.checks for each in case.measurements()],
    )


def _cases(plan: EnginePlan, threads: int) -> list[_Case]:
    config = plan.config
    bounds = Bounds(
        rows=config.max_num_batched_tokens,
        batch=config.max_num_seqs,
        context=config.max_model_len - _SAMPLING_ROOM,
        kv_tokens=(config.num_blocks - 1) * config.block_size,
    )
    shares = sorted({count / threads for count in _fewer(threads)} | {1.0}, reverse=True)
    return [
        _Case(steps, share, checks)
        for share in shares
        for checks, kinds in ((False, fitting_steps(bounds)), (True, checking_steps(bounds)))
        for steps in kinds
    ]


def _fewer(threads: int) -> list[int]:
    """Half of the threads, a quarter, and so on."""
    return [threads >> power for power in range(1, threads.bit_length()) if threads >> power]


def use_threads(threads: int) -> None:
    """Compute with so many threads; 0 where nobody computes with threads of a CPU."""
    if threads:
        torch.set_num_threads(threads)
