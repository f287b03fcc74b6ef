"""Takes times of steps on two lanes: alone, and beside each other.

The lanes are those that serve (`twinflow.runtime.lanes.two`), on a split that stays, without an
engine: the same steps are handed over again and again. Both lanes are kept busy until each has
taken enough steps; so a short step is measured while a long one lasts, and a long one beside many
short ones.
"""

from collections.abc import Callable, Sequence
from random import Random

import msgspec

from twinflow.parallel.partition.backends.base import Backend
from twinflow.parallel.partition.control import Mode
from twinflow.parallel.partition.layout import Layout
from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.cost.step_timer import SAMPLING
from twinflow.runtime.cost.steps import Steps
from twinflow.runtime.engine_plan import EnginePlan
from twinflow.runtime.executor import Executor, Work
from twinflow.runtime.lanes.base import Step
from twinflow.runtime.lanes.two import TwoLanes
from twinflow.runtime.model_executor import ModelExecutor
from twinflow.runtime.model_runner import ModelRunner
from twinflow.runtime.request import Request
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.step_plan import RowGroup, RowKind

_LEAST = 2  # steps of each lane, beside the other one's


class PairTimes(msgspec.Struct, frozen=True):
    """One lane's step of a pair.

    Attributes:
        load: what was computed.
        alone: seconds of each step while the other lane did nothing.
        beside: seconds of each step while it computed.
    """

    load: StepLoad
    alone: list[float]
    beside: list[float]


class _Split:
    """The split that was set; a `Division`."""

    def __init__(self, layout: Layout) -> None:
        self.now = layout

    def layout(self, lane: Mode, load: StepLoad, other: StepLoad) -> Layout:
        """See `Division.layout`."""
        return self.now

    def close(self) -> None:
        """See `Division.close`."""


class PairTimer:
    """Takes times of pairs.

    Args:
        plan: of the engine.
        runner: of the model; its KV is written to.
        backend: divides the device; closed with this.
        clock: seconds.

    Raises:
        ValueError: the backend divides nothing.
    """

    def __init__(
        self,
        plan: EnginePlan,
        runner: ModelRunner,
        backend: Backend,
        *,
        clock: Callable[[], float],
    ) -> None:
        if backend.grid is None:
            raise ValueError(f"the backend {backend.name} divides nothing")
        self._plan = plan
        self._random = Random(0)
        self._clock = clock
        vocab_size, device = plan.model.vocab_size, plan.options.device
        self._executor = ModelExecutor(
            runner, Sampler(vocab_size, device), vocab_size=vocab_size, layers_per_unit=0
        )
        second = self._executor.beside(runner.beside(), Sampler(vocab_size, device))
        executors: dict[Mode, Executor] = {Mode.PREFILL: self._executor, Mode.DECODE: second}
        self._split = _Split(backend.grid.layout(0))
        layers = plan.model.num_layers
        self._lanes = TwoLanes(executors, backend, self._split, num_layers=layers, clock=clock)

    def run(self, steps: Steps, layout: Layout) -> dict[Mode, PairTimes]:
        """Compute a prompt's chunk on one lane and decode on the other, as said by a batch.

        Raises:
            EngineError: a lane has died.
            Exception: what computing a step has raised.
        """
        self._split.now = layout
        pair = self._steps(steps)
        try:
            alone = {lane: self._run([step], 1)[lane] for lane, step in pair.items()}
            beside = self._run(list(pair.values()), _LEAST)
        finally:
            for step in pair.values():
                for item in step.work:
                    self._executor.forget(item.request.request_id)
        return {
            lane: PairTimes(StepLoad.of([w.group for w in step.work]), alone[lane], beside[lane])
            for lane, step in pair.items()
        }

    def close(self) -> None:
        """End the lanes."""
        self._lanes.close()

    def _run(self, steps: Sequence[Step], least: int) -> dict[Mode, list[float]]:
        """Keep lanes busy until each has taken so many steps; the seconds of each step.

        Steps that end when there are enough are left out: the other lane may have been idle.
        """
        taken: dict[Mode, list[float]] = {step.lane: [] for step in steps if step.lane}
        began: dict[Mode, float] = {}

        def begin(step: Step, lane: Mode) -> None:
            began[lane] = self._clock()
            self._lanes.begin(step)

        for step in steps:
            begin(step, step.lane or Mode.PREFILL)
        failed: Exception | None = None
        while began:
            for outcome in self._lanes.over(None):
                lane = outcome.step.lane or Mode.PREFILL
                seconds = self._clock() - began.pop(lane)
                failed = failed or outcome.error
                if failed is None and min(map(len, taken.values())) < least:
                    taken[lane].append(seconds)
                    begin(outcome.step, lane)
        if failed is not None:
            raise failed
        return taken

    def _steps(self, steps: Steps) -> dict[Mode, Step]:
        prompt = self._work("p", 0, steps.rows, 1)
        decoding, first = [], 1 + len(prompt.blocks)
        for index in range(steps.batch):
            decoding.append(self._work(f"d{index}", steps.context - 1, 1, first))
            first += len(decoding[-1].blocks)
        return {
            Mode.PREFILL: Step(Mode.PREFILL, (prompt,)),
            Mode.DECODE: Step(Mode.DECODE, tuple(decoding)),
        }

    def _work(self, request_id: str, start: int, count: int, first_block: int) -> Work:
        """Rows [start, start + count) of a request of random tokens, on blocks of its own."""
        vocab_size, end = self._plan.model.vocab_size, start + count
        tokens = [self._random.randrange(vocab_size) for _ in range(end)]
        request = Request(request_id=request_id, prompt_token_ids=tokens, params=SAMPLING)
        self._executor.admit(request)
        group = RowGroup(
            request_id=request_id,
            token_start=start,
            token_count=count,
            layer_start=0,
            layer_end=self._plan.model.num_layers,
            kind=RowKind.PREFILL if start == 0 else RowKind.DECODE,
            samples=True,
        )
        blocks = -(-end // self._plan.config.entry_tokens)
        return Work(request, group, range(first_block, first_block + blocks))
