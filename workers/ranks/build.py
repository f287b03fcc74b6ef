"""Makes the ranks of a worker: rank 0 with an engine, the others with a loop that obeys it.

All ranks plan alone, meet, agree on the number of KV blocks, load their shares, and are ready when
every one of them has loaded the same weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from twinflow.parallel.ranks.base import Seat
from twinflow.parallel.ranks.distributed import DistributedRanks
from twinflow.protos.errors import RankLost, TwinflowError
from twinflow.runtime.build import BuiltEngine, assemble_engine, find_times
from twinflow.runtime.draft_loading import load_share
from twinflow.runtime.engine_plan import EngineOptions, EnginePlan, plan_engine
from twinflow.runtime.kv_progress import KVProgress
from twinflow.runtime.model_runner import ModelRunner
from twinflow.runtime.runner import DraftRunner
from twinflow.runtime.runner_loading import LoadProgress, load_runner
from twinflow.runtime.speculative.config import WITH_MODEL
from twinflow.runtime.speculative.layer_parallel.share import DraftShare
from twinflow.workers.ranks.config import TeamConfig
from twinflow.workers.ranks.follower import Follower, FollowerLoop
from twinflow.workers.ranks.leader import Leader
from twinflow.workers.ranks.together import LeaderDraftTeam, LeaderRunner, Together


@dataclass(frozen=True, slots=True)
class LoadedLeader:
    """Rank 0 of a worker whose ranks have all loaded.

    Attributes:
        plan: of this rank, with as many KV blocks as all have.
        runner: of this rank's share.
        leader: the other ranks.
    """

    plan: EnginePlan
    runner: ModelRunner
    leader: Leader


@dataclass(frozen=True, slots=True)
class BuiltLeader:
    """Rank 0 of a worker.

    Attributes:
        built: its engine.
        leader: the other ranks.
    """

    built: BuiltEngine
    leader: Leader


@dataclass(frozen=True, slots=True)
class BuiltFollower:
    """Another rank of a worker.

    Attributes:
        loop: to be run, once this rank has said that it is ready.
        follower: rank 0.
        runner: of this rank's share.
        plan: of this rank.
        team: of this rank.
    """

    loop: FollowerLoop
    follower: Follower
    runner: ModelRunner
    plan: EnginePlan
    team: TeamConfig

    def ready(self, address: str) -> None:
        """Tell rank 0 that this rank has loaded; now steps may come.

        Args:
            address: where it hands KV over.

        Raises:
            RankLost: another rank is gone.
        """
        parts = tuple(part.name for part in self.plan.rank_layout.parts)
        self.follower.ready(self.plan.fingerprint, address, parts)
        self.follower.check()

    def fail(self, error: BaseException) -> None:
        """Leave the worker, and tell rank 0 why."""
        self.follower.fail(_as_loss(self.team, error))
        self.follower.close()


def build_leader(
    options: EngineOptions,
    config: TeamConfig,
    *,
    clock: Callable[[], float],
    on_kv: Callable[[KVProgress], None] | None = None,
    progress: LoadProgress | None = None,
) -> BuiltLeader:
    """Make rank 0, once all other ranks have come; returns when all have loaded.

    Args:
        options: what to load and how much memory each rank may take.
        config: of rank 0.
        clock: seconds, monotonic.
        on_kv: see `Engine`.
        progress: told how far loading is.

    Raises:
        CheckpointError: the directory cannot be served.
        ConfigError: an option does not fit the model, the machine or the other ranks.
        RankLost: another rank did not come, or is gone.
    """
    loaded = load_leader(options, config, progress)
    with _failing_together(loaded.leader, config):
        together = Together(loaded.leader)
        built = assemble_engine(
            loaded.plan,
            LeaderRunner(loaded.runner, together),
            clock=clock,
            on_kv=on_kv,
            times=find_times(loaded.plan, config.size),
            team=LeaderDraftTeam(together, config.load_s, loaded.runner),
        )
    return BuiltLeader(built, loaded.leader)


def load_leader(
    options: EngineOptions, config: TeamConfig, progress: LoadProgress | None = None
) -> LoadedLeader:
    """What comes before the engine of rank 0; arguments and errors as of `build_leader`."""
    plan = plan_engine(options, Seat(config.rank, config.size))
    if progress is not None:
        progress("waiting for the other ranks", 0, 0)
    leader = Leader.meet(config, plan.layout.digest(), plan.config.num_blocks)
    with _failing_together(leader, config):
        plan = plan.with_blocks(leader.num_blocks)
        runner = _load(plan, config, leader.ranks, progress)
        leader.await_ready(plan.fingerprint)
    return LoadedLeader(plan, runner, leader)


def build_follower(
    options: EngineOptions,
    config: TeamConfig,
    *,
    on_kv: Callable[[KVProgress], None] | None = None,
    progress: LoadProgress | None = None,
) -> BuiltFollower:
    """Make a rank that follows rank 0; arguments and errors as of `build_leader`."""
    plan = plan_engine(options, Seat(config.rank, config.size))
    if progress is not None:
        progress("waiting for rank 0", 0, 0)
    follower = Follower.join(config, plan.layout.digest(), plan.config.num_blocks)
    with _failing_together(follower, config):
        plan = plan.with_blocks(follower.num_blocks)
        runner = _load(plan, config, follower.ranks, progress)
    load_draft = _draft_loader(plan, runner, follower.ranks, config)
    loop = FollowerLoop(runner, follower, on_kv, load_draft)
    return BuiltFollower(loop, follower, runner, plan, config)


def _draft_loader(
    plan: EnginePlan, runner: ModelRunner, ranks: DistributedRanks, config: TeamConfig
) -> Callable[[DraftShare], DraftRunner | None] | None:
    """Loads this rank's share of what drafts; None where nothing with a model does."""
    speculation = plan.options.speculative_config
    if speculation is None or speculation.method not in WITH_MODEL:
        return None

    def load(share: DraftShare) -> DraftRunner | None:
        if share.ranks == 1:  # rank 0 drafts
            return None
        with ranks.patience(config.load_s):
            return load_share(speculation, plan, share, ranks, runner).runner

    return load


@contextmanager
def _failing_together(end: Leader | Follower, config: TeamConfig) -> Iterator[None]:
    """Tell the other ranks if this one cannot start."""
    try:
        yield
    except BaseException as error:  # also what ends the process: the other ranks are told
        end.fail(_as_loss(config, error))
        end.close()
        raise


def _load(
    plan: EnginePlan, config: TeamConfig, ranks: DistributedRanks, progress: LoadProgress | None
) -> ModelRunner:
    # A rank that is done waits for the others in the first collective.
    with ranks.patience(config.load_s):
        return load_runner(plan, ranks, progress)


def _as_loss(config: TeamConfig, error: BaseException) -> RankLost:
    """What the other ranks are told when this one cannot start."""
    if isinstance(error, RankLost):
        return error
    text = error.message if isinstance(error, TwinflowError) else f"{type(error).__name__}: {error}"
    return RankLost(f"{config.describe()} could not start: {text}")
