"""Serves prompts with one way to guess, and says where the time of its steps went.

All arms take turns on one model with one KV cache; an engine is made anew for each run, a drafter
lives as long as its arm. Only steps in which everybody decodes count. A run has a fixed number of
sequences at a time: as many as there are prompts.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from twinflow.runtime.config import EngineConfig
from twinflow.runtime.engine import Engine
from twinflow.runtime.engine_plan import EnginePlan
from twinflow.runtime.executor import LayersDone
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.model_executor import ModelExecutor
from twinflow.runtime.model_runner import ModelRunner, SequenceRows
from twinflow.runtime.request import Request
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.schedulers import create_scheduler
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.runtime.speculative.account import SpeculationAccount
from twinflow.runtime.speculative.draft import Draft
from twinflow.runtime.speculative.drafters.base import (
    DraftedSequence,
    Drafter,
    DraftQuery,
    LikelyNext,
    Outlook,
)
from twinflow.runtime.speculative.goodput.controller import GoodputController
from twinflow.runtime.speculative.speculation import Speculation

Clock = Callable[[], float]


@dataclass
class TimedRunner:
    """A runner that counts its seconds, and the sequences whose next tokens it was asked for."""

    runner: ModelRunner
    clock: Clock
    seconds: float = 0.0
    sampled: int = 0
    decodes_only: bool = True

    @property
    def kv_cache(self) -> KVCache:
        return self.runner.kv_cache

    def forward(
        self,
        rows: Sequence[SequenceRows],
        on_layers: LayersDone | None = None,
        layers_per_unit: int = 0,
    ) -> Tensor:
        start = self.clock()
        logits = self.runner.forward(rows, on_layers, layers_per_unit)
        self.seconds += self.clock() - start
        # A proposal that branches has several groups of rows.
        self.sampled += len({group.sequence for group in rows if group.samples})
        self.decodes_only = all(len(group.token_ids) == 1 + group.drafted for group in rows)
        return logits

    def take_traffic(self) -> Sequence[LayerTraffic]:
        return self.runner.take_traffic()

    def forget(self, sequence: str) -> bool:
        return self.runner.forget(sequence)


@dataclass
class TimedDrafter:
    """A drafter that counts its seconds."""

    drafter: Drafter
    clock: Clock
    seconds: float = 0.0

    @property
    def likely_tokens(self) -> int:
        return self.drafter.likely_tokens

    def propose(self, queries: Sequence[DraftQuery]) -> Sequence[Draft]:
        start = self.clock()
        drafts = self.drafter.propose(queries)
        self.seconds += self.clock() - start
        return drafts

    def outlook(self, sequences: Sequence[DraftedSequence], nodes: int) -> Outlook:
        return self.drafter.outlook(sequences, nodes)

    def observe(self, likely: Sequence[LikelyNext]) -> None:
        start = self.clock()
        self.drafter.observe(likely)
        self.seconds += self.clock() - start

    def forget(self, sequence: DraftedSequence) -> None:
        self.drafter.forget(sequence)


@dataclass
class Served:
    """What became of a run.

    Attributes:
        tokens: of every prompt.
        passes: sequences in the target's decoding steps: each may get several tokens.
        gained: tokens that they got.
        draft_s: seconds of decoding steps that the drafter took.
        verify_s: that the target's pass took.
        step_s: of all of decoding.
        tpot_s: mean over requests of seconds per token behind the first.
        account: of proposals.
    """

    tokens: list[list[int]]
    passes: int = 0
    gained: int = 0
    draft_s: float = 0.0
    verify_s: float = 0.0
    step_s: float = 0.0
    tpot_s: float = 0.0
    account: SpeculationAccount = field(default_factory=SpeculationAccount)


@dataclass(frozen=True)
class Arm:
    """A way to guess, at work.

    Attributes:
        name: in tables.
        count: most tokens of a proposal.
        drafter: keeps what it learns from run to run; None for no proposals.
        goodput: says how much is proposed, likewise; None for as much as there is.
    """

    name: str
    count: int
    drafter: Drafter | None
    goodput: GoodputController | None = None


@dataclass(frozen=True)
class Bench:
    """What all arms have in common.

    Attributes:
        plan: of the target.
        runner: of the target; used by one run at a time.
        max_tokens: output of each request.
        clock: seconds.
    """

    plan: EnginePlan
    runner: ModelRunner
    max_tokens: int
    clock: Clock = time.perf_counter

    def run(self, arm: Arm, prompts: Sequence[Sequence[int]]) -> Served:
        """Serve prompts, all at the same time."""
        drafter = arm.drafter
        target = TimedRunner(self.runner, self.clock)
        timed = None if drafter is None else TimedDrafter(drafter, self.clock)
        engine = self._engine(target, timed, arm, len(prompts))
        for number, prompt in enumerate(prompts):
            params = SamplingParams(temperature=0, max_tokens=self.max_tokens, ignore_eos=True)
            engine.add_request(
                Request(request_id=str(number), prompt_token_ids=list(prompt), params=params)
            )
        return self._steps(engine, target, timed, len(prompts))

    def _steps(
        self, engine: Engine, target: TimedRunner, timed: TimedDrafter | None, count: int
    ) -> Served:
        served = Served([[] for _ in range(count)])
        ends: list[list[float]] = [[] for _ in range(count)]
        now = 0.0
        while engine.runnable:
            before = (target.seconds, timed.seconds if timed else 0.0, target.sampled)
            start = self.clock()
            engine.step()
            took = self.clock() - start
            now += took
            gained = 0
            for name, delta in engine.take_outputs().deltas:
                served.tokens[int(name)].extend(delta.token_ids)
                ends[int(name)].extend([now] * len(delta.token_ids))
                gained += len(delta.token_ids)
            if target.decodes_only:
                served.step_s += took
                served.verify_s += target.seconds - before[0]
                served.draft_s += (timed.seconds if timed else 0.0) - before[1]
                served.passes += target.sampled - before[2]
                served.gained += gained
        spans = [(times[-1] - times[0]) / max(1, len(times) - 1) for times in ends]
        served.tpot_s = sum(spans) / count
        served.account = engine.counters.speculation.copy()
        return served

    def _engine(
        self, target: TimedRunner, timed: TimedDrafter | None, arm: Arm, sequences: int
    ) -> Engine:
        cache, vocab_size = self.runner.kv_cache, self.plan.model.vocab_size
        config = EngineConfig(
            max_model_len=(cache.num_blocks - 1) // sequences * cache.layout.block_size,
            num_blocks=cache.num_blocks,
            block_size=cache.layout.block_size,
            max_num_seqs=sequences,
            max_num_batched_tokens=self.plan.config.max_num_batched_tokens,
            enable_prefix_caching=False,
            num_speculative_tokens=arm.count if timed else 0,
        )
        executor = ModelExecutor(
            target,
            Sampler(vocab_size, str(cache.data.device)),
            vocab_size=vocab_size,
            layers_per_unit=0,
            speculation=Speculation(timed) if timed else None,
        )
        blocks = BlockManager(
            cache.num_blocks,
            cache.layout.block_size,
            model_fingerprint="",
            layout_digest="",
            enable_prefix_caching=False,
        )
        layers = cache.layout.num_layers
        scheduler = create_scheduler(config.scheduler, SchedulerSetup.of(config, layers, None))
        return Engine(
            config,
            executor,
            blocks,
            scheduler,
            num_layers=layers,
            clock=self.clock,
            goodput=arm.goodput,
        )
