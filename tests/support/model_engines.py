"""Engines over tiny models, fed with random requests, with preemptions and aborts."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.support.engines import Collected, ManualClock
from tests.support.lanes import OrderedLanes
from tests.support.request_mixes import Ask
from tests.support.runners import make_runner

from twinflow.parallel.partition.backends.base import Backend
from twinflow.parallel.partition.control import Mode
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.cost.base import StepTimes
from twinflow.runtime.engine import Engine
from twinflow.runtime.executor import Executor
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.lanes.division import Division
from twinflow.runtime.lanes.fallback import FallbackLanes
from twinflow.runtime.lanes.one import OneLane
from twinflow.runtime.lanes.two import TwoLanes
from twinflow.runtime.model_executor import ModelExecutor
from twinflow.runtime.model_runner import ModelRunner
from twinflow.runtime.models.base import Model
from twinflow.runtime.request import Request
from twinflow.runtime.runner import Runner
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.schedulers import create_scheduler
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.runtime.speculative.drafters.base import Drafter
from twinflow.runtime.speculative.speculation import Speculation


@dataclass(frozen=True)
class Divided:
    """A device that is divided.

    Attributes:
        backend: divides it.
        division: says how.
        seed: of the order in which the steps of two lanes end; None for that in which they are
            computed.
    """

    backend: Backend
    division: Division
    seed: int | None = None

    def lanes(self, executors: Mapping[Mode, Executor], num_layers: int) -> TwoLanes:
        """Its lanes."""
        parts = (executors, self.backend, self.division)
        if self.seed is None:
            return TwoLanes(*parts, num_layers=num_layers)
        return OrderedLanes(*parts, num_layers=num_layers, seed=self.seed)


@dataclass
class ModelEngine:
    """An engine, its model runner, and a clock that moves with every step.

    Attributes:
        waves: steps after which rows had crossed some of the layers only.
        lanes: the two, if there are.
        aborted: requests that were, by name.
    """

    engine: Engine
    runner: ModelRunner
    clock: ManualClock
    done: Collected = field(default_factory=Collected)
    waves: int = 0
    lanes: TwoLanes | None = None
    aborted: set[str] = field(default_factory=set)

    @classmethod
    def build(
        cls,
        model: Model,
        config: EngineConfig,
        times: StepTimes | None = None,
        drafter: Drafter | None = None,
        divided: Divided | None = None,
        together: Callable[[ModelRunner], Runner] = lambda runner: runner,
    ) -> "ModelEngine":
        """An engine over a model, which may be shared with others; on two lanes if its device is
        divided, or on the runner that `together` makes of its own and those of other ranks."""
        runner = make_runner(
            model, config.num_blocks, config.block_size, config.max_num_batched_tokens
        )
        vocab_size, num_layers = model.config.vocab_size, model.config.num_layers
        executor = ModelExecutor(
            together(runner),
            Sampler(vocab_size, "cpu"),
            vocab_size=vocab_size,
            layers_per_unit=2,
            speculation=None if drafter is None else Speculation(drafter),
        )
        blocks = BlockManager(
            config.num_blocks,
            config.block_size,
            model_fingerprint="model",
            layout_digest="layout",
            enable_prefix_caching=config.enable_prefix_caching,
            share_generated=model.config.latent is None,
        )
        clock = ManualClock()
        setup = SchedulerSetup.of(config, num_layers, times)
        scheduler = create_scheduler(config.scheduler, setup)
        two: TwoLanes | None = None
        if divided is not None:
            other = executor.beside(runner.beside(), Sampler(vocab_size, "cpu"))
            executors = {Mode.PREFILL: executor, Mode.DECODE: other}
            two = divided.lanes(executors, num_layers)
        lanes = FallbackLanes(two, OneLane(executor)) if two is not None else None
        engine = Engine(
            config, executor, blocks, scheduler, num_layers=num_layers, clock=clock, lanes=lanes
        )
        return cls(engine, runner, clock, lanes=two)

    def play(self, asks: Sequence[Ask], *, seed: int, abort: float = 0.0) -> dict[int, list[int]]:
        """Submit requests over some steps and run to the end.

        Args:
            asks: the requests.
            seed: of arrivals and aborts.
            abort: chance, in every step, that somebody is aborted.

        Returns:
            Tokens by the number of the request, without those that were aborted.
        """
        source = random.Random(seed)
        waiting = list(enumerate(asks))
        while waiting or self.engine.runnable:
            while waiting and source.random() < 0.6:
                number, ask = waiting.pop(0)
                self._submit(str(number), ask)
            if source.random() < abort and len(self.engine.queues):
                victim = source.choice(list(self.engine.queues)).request_id
                self.engine.abort(victim)
                self.aborted.add(victim)
            self.engine.step()
            self.waves += self.runner.num_unfinished > 0
            self.clock.advance(source.random())
            self.done.take(self.engine)
            self.engine.check_integrity()
        self._check_returned()
        assert self.done.failures == {}
        names = map(str, range(len(asks)))
        return {int(n): self.done.tokens[n] for n in names if n not in self.aborted}

    def _submit(self, name: str, ask: Ask) -> None:
        request = Request(request_id=name, prompt_token_ids=ask.prompt, params=ask.params)
        self.engine.add_request(request)

    def _check_returned(self) -> None:
        """Blocks and hidden states are given back."""
        assert self.engine.blocks.num_idle == self.engine.blocks.num_blocks
        assert self.runner.num_unfinished == 0
