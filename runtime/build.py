"""Makes an engine from a model directory: read, check, load, allocate.

    engine_plan      everything that can be refused is refused before memory is taken
    runner_loading   weights and KV memory
    assemble_engine  the rest

The one place where production collaborators meet. A worker of several ranks plans and loads on
each of them, with an agreement in between, and assembles on one. Starts nothing and opens no
socket.
"""

from collections.abc import Callable
from dataclasses import dataclass

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.latent.block_share import BlockShare
from twinflow.parallel.links.manifest import choose_layers_per_unit
from twinflow.parallel.ranks.base import OneRank
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.cost.base import StepTimes
from twinflow.runtime.draft_loading import Target, load_drafter
from twinflow.runtime.draft_team import Alone, DraftTeam
from twinflow.runtime.engine import Engine
from twinflow.runtime.engine_plan import EngineOptions, EnginePlan, plan_engine
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.kv_progress import OnKV
from twinflow.runtime.lanes.options import LaneReport
from twinflow.runtime.lanes.setup import LaneParts, make_lanes
from twinflow.runtime.model_executor import ModelExecutor
from twinflow.runtime.model_runner import ModelRunner
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.runner import Runner
from twinflow.runtime.runner_loading import LoadProgress, load_runner
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.schedulers import create_scheduler
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.runtime.speculative.drafters.draft_kv import DraftKV
from twinflow.runtime.speculative.goodput.setup import create_goodput
from twinflow.runtime.speculative.speculation import Speculation, create_speculation
from twinflow.runtime.step_times import engine_key, measured_times


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine and what others need to know of it.

    Attributes:
        engine: ready to step.
        cache: its KV memory.
        layout: of its KV blocks, those of all ranks together.
        share: which blocks of a sequence are in `cache`.
        layers_per_unit: layers whose KV is handed over together.
        model: shape of the model.
        config: limits of the engine.
        fingerprint: see `EnginePlan.fingerprint`.
        dtype: name of the dtype of weights and KV.
        lanes: which lanes the engine has.
        speculation: makes proposals; None for none.
    """

    engine: Engine
    cache: KVCache
    layout: KVLayout
    share: BlockShare
    layers_per_unit: int
    model: ModelConfig
    config: EngineConfig
    fingerprint: str
    dtype: str
    lanes: LaneReport
    speculation: Speculation | None = None

    @property
    def draft_kv(self) -> DraftKV | None:
        """KV of the model that drafts; None if none does."""
        return None if self.speculation is None else self.speculation.draft_kv


def build_engine(
    options: EngineOptions,
    *,
    clock: Callable[[], float],
    on_kv: OnKV | None = None,
    progress: LoadProgress | None = None,
    times: StepTimes | None = None,
) -> BuiltEngine:
    """Load a model and make an engine that runs it, all in this process.

    Args:
        options: what to load and how much memory to take.
        clock: seconds, monotonic.
        on_kv: see `Engine`.
        progress: told how far loading is.
        times: see `assemble_engine`; None takes what was measured, if anything was.

    Raises:
        CheckpointError: the directory cannot be served.
        ConfigError: an option does not fit the model or the machine.
    """
    ranks = OneRank()
    plan = plan_engine(options, ranks)
    runner = load_runner(plan, ranks, progress)
    times = times or find_times(plan)
    return assemble_engine(plan, runner, clock=clock, on_kv=on_kv, times=times)


def assemble_engine(
    plan: EnginePlan,
    runner: Runner,
    *,
    clock: Callable[[], float],
    on_kv: OnKV | None = None,
    times: StepTimes | None = None,
    team: DraftTeam | None = None,
) -> BuiltEngine:
    """Put an engine round a runner.

    Args:
        plan: what the engine is to be.
        runner: of this rank, or of all.
        clock: seconds, monotonic.
        on_kv: see `Engine`.
        times: predicts how long steps take here; None if that is not known.
        team: the ranks that a drafter may use; None for this one alone.
    """
    setup = SchedulerSetup.of(plan.config, plan.model.num_layers, times)
    layers_per_unit = choose_layers_per_unit(plan.layout)
    alone = runner if isinstance(runner, ModelRunner) else None
    speculation = create_speculation(
        plan.options.speculative_config,
        plan.model.vocab_size,
        lambda config: load_drafter(config, Target(plan, runner, team or Alone(alone))),
    )
    executor = ModelExecutor(
        runner,
        _sampler(plan),
        vocab_size=plan.model.vocab_size,
        layers_per_unit=layers_per_unit,
        speculation=speculation,
    )
    fingerprint = plan.fingerprint
    blocks = _block_manager(plan, fingerprint)
    lanes, report = make_lanes(
        plan.options.lanes, _lane_parts(plan, runner, executor, blocks, times)
    )
    return BuiltEngine(
        engine=Engine(
            plan.config,
            executor,
            blocks,
            create_scheduler(plan.config.scheduler, setup),
            num_layers=plan.model.num_layers,
            clock=clock,
            on_kv=on_kv,
            lanes=lanes,
            goodput=create_goodput(plan.options.speculative_config, plan.options.name),
        ),
        cache=runner.kv_cache,
        layout=plan.layout,
        share=plan.share,
        layers_per_unit=layers_per_unit,
        model=plan.model,
        config=plan.config,
        fingerprint=fingerprint,
        dtype=plan.layout.dtype,
        lanes=report,
        speculation=speculation,
    )


def _lane_parts(
    plan: EnginePlan,
    runner: Runner,
    executor: ModelExecutor,
    blocks: BlockManager,
    times: StepTimes | None,
) -> LaneParts:
    """What lanes are made of; ranks take their steps together, so that there is one lane."""
    alone = runner if isinstance(runner, ModelRunner) else None
    return LaneParts(
        executor=executor,
        second=(lambda: executor.beside(alone.beside(), _sampler(plan))) if alone else None,
        obstacle="" if alone else "a worker of several ranks computes one step at a time",
        blocks=blocks,
        times=times,
        num_layers=plan.model.num_layers,
        device=plan.options.device,
    )


def _sampler(plan: EnginePlan) -> Sampler:
    return Sampler(plan.model.vocab_size, plan.options.device)


def find_times(plan: EnginePlan, ranks: int = 1) -> StepTimes | None:
    """The step times that were measured for an engine, once its weights are loaded.

    Args:
        plan: of the engine.
        ranks: that compute the model together.
    """
    options = plan.options
    key = engine_key(plan.fingerprint, options.device, plan.layout.dtype, ranks)
    return measured_times(options.model, key, wanted=options.tbt_objective is not None)


def _block_manager(plan: EnginePlan, fingerprint: str) -> BlockManager:
    return BlockManager(
        plan.config.num_blocks,
        plan.config.entry_tokens,
        model_fingerprint=fingerprint,
        layout_digest=plan.layout.digest(),
        enable_prefix_caching=plan.config.enable_prefix_caching,
        # Prompt and generated tokens take different forms of latent attention.
        share_generated=plan.latents is None,
    )
