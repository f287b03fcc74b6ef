"""Loads the model that drafts for a model that is served, and settles how it drafts.

What the configuration leaves open is measured at start, on rank 0, which tells the other ranks what
to load. A choice decides about speed alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import torch

from twinflow.parallel.ranks.base import OneRank, RankGroup, Seat
from twinflow.protos.errors import ConfigError
from twinflow.runtime.draft_team import DraftTeam
from twinflow.runtime.engine_plan import EnginePlan, plan_engine
from twinflow.runtime.latent_setup import LatentOptions
from twinflow.runtime.model_runner import ModelRunner
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.runner import DraftRunner, Runner
from twinflow.runtime.runner_loading import load_runner
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.speculative.config import EASYSPEC, SpeculativeConfig
from twinflow.runtime.speculative.drafters.draft_model import DraftModelDrafter
from twinflow.runtime.speculative.drafters.draft_trees import TreeModelDrafter
from twinflow.runtime.speculative.layer_parallel import probe
from twinflow.runtime.speculative.layer_parallel.choice import Candidate, best
from twinflow.runtime.speculative.layer_parallel.config import AUTO
from twinflow.runtime.speculative.layer_parallel.plan import LayerPlan
from twinflow.runtime.speculative.layer_parallel.share import DraftShare, possible_shares

# With `auto`: groups of 1, which is no group, to 5, as in the paper's ablation.
_AUTO_SIZES = range(1, 6)
# A measured plan may make some groups so much larger, and others smaller in return.
_LARGER = 1


@dataclass(frozen=True, slots=True)
class Target:
    """What a drafter is loaded for.

    Attributes:
        plan: of the engine.
        runner: of the engine, whose KV blocks nobody has yet.
        team: the ranks of the worker.
    """

    plan: EnginePlan
    runner: Runner
    team: DraftTeam


@dataclass(frozen=True, slots=True)
class LoadedShare:
    """The part of a drafter that one rank computes.

    Attributes:
        plan: what it is.
        runner: its weights, which may be those of the model that is served, and KV of its own.
    """

    plan: EnginePlan
    runner: ModelRunner


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A drafter in one layout."""

    share: DraftShare
    model: ModelConfig
    runner: DraftRunner
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Agreement:
    """How often plans are right, the same in every layout; see `probe.agreement`."""

    exact: float
    planned: dict[LayerPlan, float]
    verify_s: float


def load_drafter(config: SpeculativeConfig, target: Target) -> DraftModelDrafter:
    """A drafter with a model, and KV blocks for as many tokens as the target has.

    Args:
        config: names the model.
        target: the engine that it drafts for.

    Raises:
        CheckpointError: its directory cannot be served.
        ConfigError: it knows other tokens than the target, has shorter contexts, or cannot be
            computed in the wanted layout.
        RankLost: another rank is gone.
    """
    shares = possible_shares(config, target.team.size)
    if config.layer_parallel.layout not in (AUTO, *(share.layout for share in shares)):
        structlog.get_logger().warning(
            "the worker has one rank, which drafts alone",
            layout=config.layer_parallel.layout,
        )
    if config.method != EASYSPEC:
        loaded = _load(config, target, shares[0])
        plan = LayerPlan.serial(loaded.model.num_layers)
    elif len(shares) == 1 and config.layer_parallel.size != AUTO:
        loaded = _load(config, target, shares[0])
        plan = _plan(config, target, loaded)
    else:
        loaded, plan = _choose(config, target, shares)
    sampler = Sampler(loaded.model.vocab_size, target.plan.options.device)
    vocab_size = loaded.model.vocab_size
    max_rows = target.plan.config.max_num_batched_tokens
    # Blocks that are spread over ranks stay where they are.
    fingerprint = loaded.fingerprint if loaded.share.ranks == 1 else ""
    if config.tree is not None:
        return TreeModelDrafter(
            loaded.runner,
            sampler,
            config.tree,
            vocab_size=vocab_size,
            max_rows=max_rows,
            plan=plan,
            fingerprint=fingerprint,
        )
    return DraftModelDrafter(
        loaded.runner,
        sampler,
        vocab_size=vocab_size,
        max_rows=max_rows,
        plan=plan,
        calibrate=config.layer_parallel.calibrate,
        fingerprint=fingerprint,
    )


def load_share(
    config: SpeculativeConfig,
    target: EnginePlan,
    share: DraftShare,
    ranks: RankGroup,
    served: ModelRunner | None = None,
) -> LoadedShare:
    """The part of a drafter that one rank computes.

    All ranks of the worker call it, unless one drafts alone. A model that drafts for itself has its
    weights in memory once, where it is cut as the one that is served.

    Args:
        config: names the model.
        target: the engine that it drafts for, as this rank plans it.
        share: layout of the drafter.
        ranks: of the worker, connected.
        served: what this rank computes of the target; None if its weights are not to be used.

    Raises:
        ConfigError: the model cannot be computed so.
        CheckpointError: its directory cannot be served.
        RankLost: another rank is gone.
    """
    group = ranks.neighbours(share.ranks) if share.ranks > 1 else OneRank()
    plan = plan_share(config, target, share, group)
    if served is not None and group.size == ranks.size and _same_weights(plan, target):
        plan, limits = replace(plan, checkpoint=target.checkpoint), plan.config
        runner = served.apart(plan.rank_layout, limits.num_blocks, limits.max_num_batched_tokens)
    else:
        runner = load_runner(plan, group)
    if share.ranks > 1:  # wait until all have loaded
        ranks.all_gather(torch.zeros(1, 1, device=target.options.device))
    return LoadedShare(plan, runner)


def _same_weights(plan: EnginePlan, target: EnginePlan) -> bool:
    """Whether ranks hold of a drafter what as many hold of a target."""
    schemes = {None if one is None else one.scheme for one in (plan.latents, target.latents)}
    return (
        plan.options.model.resolve() == target.options.model.resolve()
        and plan.owners is None
        and not target.options.expert_parallel
        and len(schemes) == 1
        and plan.kernels.identity == target.kernels.identity
        and plan.layout.dtype == target.layout.dtype
    )


def plan_share(
    config: SpeculativeConfig, target: EnginePlan, share: DraftShare, group: RankGroup
) -> EnginePlan:
    """What `load_share` loads; errors likewise.

    Args:
        group: ranks that draft together; need not be connected yet.
    """
    limits = target.config
    options = replace(
        target.options,
        model=Path(config.model or ""),
        dtype=target.layout.dtype,
        max_model_len=limits.max_model_len,
        num_kv_blocks=-(-limits.num_blocks * limits.entry_tokens // limits.block_size),
        expert_parallel=False,
        kv_parts=1,
        latents=LatentOptions(),
        speculative_config=None,
    )
    try:
        plan = plan_engine(options, group, share.mlp if share.layout == "owner" else None)
    except ConfigError as error:
        raise ConfigError(
            f"--speculative-config: {config.model}, {share}: {error.message}"
        ) from None
    if plan.model.vocab_size != target.model.vocab_size:
        raise ConfigError(
            f"--speculative-config: {config.model} knows {plan.model.vocab_size} tokens, the model "
            f"that is served {target.model.vocab_size}: draft with a model of the same family"
        )
    return plan


def _load(config: SpeculativeConfig, target: Target, share: DraftShare) -> _Loaded:
    """Load a layout on all ranks; refuse it before any other rank hears of it."""
    plan = plan_share(config, target.plan, share, Seat(0, share.ranks))
    with target.team.loading(share) as ranks:
        own = load_share(config, target.plan, share, ranks, target.team.served)
    return _Loaded(share, plan.model, target.team.runner(own.runner, share), own.plan.fingerprint)


def _plan(config: SpeculativeConfig, target: Target, loaded: _Loaded) -> LayerPlan:
    """The plan that an operator has chosen."""
    options, layers = config.layer_parallel, loaded.model.num_layers
    uniform = _uniform(config, layers, int(options.size))
    if options.plan == "uniform" or uniform.is_serial:
        return uniform
    largest = int(options.size) + _LARGER
    groups = probe.group_plans(layers, largest, options.first, options.last)
    said = _probe(target, loaded).say(groups.values())
    errors = probe.group_errors(said, groups)
    plan = LayerPlan.measured(layers, uniform.steps, errors, options.first, options.last)
    structlog.get_logger().info("layers grouped by measured error", sizes=list(plan.sizes))
    return plan


def _choose(
    config: SpeculativeConfig, target: Target, shares: Sequence[DraftShare]
) -> tuple[_Loaded, LayerPlan]:
    """Load every layout that is possible, measure it, and keep the best."""
    count, found = config.num_speculative_tokens, list[Candidate]()
    loaded: _Loaded | None = None
    agreed: _Agreement | None = None
    for share in shares:
        loaded = None  # its memory, before the next one takes as much
        try:
            plan_share(config, target.plan, share, Seat(0, share.ranks))
        except ConfigError as error:
            structlog.get_logger().info("the drafter cannot be laid out so", reason=str(error))
            continue
        loaded = _load(config, target, share)
        plans = _auto_plans(config, loaded.model.num_layers)
        agreed = agreed or _agree(target, loaded, plans, count)
        found += _measure(share, _probe(target, loaded), agreed, plans)
    if agreed is None:
        raise ConfigError(
            f"--speculative-config: {config.model} can be computed in none of the layouts "
            f"{', '.join(map(str, shares))}"
        )
    chosen = best(found, count, agreed.verify_s)
    structlog.get_logger().info(
        "layout and groups of the drafter chosen by measured times",
        chosen=chosen.describe(count, agreed.verify_s),
        of=[one.describe(count, agreed.verify_s) for one in found],
    )
    if loaded is None or loaded.share != chosen.share:
        loaded = None
        loaded = _load(config, target, chosen.share)
    return loaded, chosen.plan if config.layer_parallel.size == AUTO else _plan(
        config, target, loaded
    )


def _measure(
    share: DraftShare, draft_probe: probe.DraftProbe, agreed: _Agreement, plans: Sequence[LayerPlan]
) -> list[Candidate]:
    """The candidates of one layout."""
    exact_s = draft_probe.seconds(None)
    return [
        Candidate(
            share,
            plan,
            exact_s,
            exact_s if plan.is_serial else draft_probe.seconds(plan),
            agreed.exact,
            agreed.planned[plan],
        )
        for plan in plans
    ]


def _agree(target: Target, loaded: _Loaded, plans: Sequence[LayerPlan], count: int) -> _Agreement:
    size = _probe_size(target, loaded)
    said = _probe(target, loaded).say(plans)
    exact, planned = probe.agreement(said, probe.target_says(target.runner, said, size))
    return _Agreement(exact, planned, probe.verify_seconds(target.runner, count, size))


def _auto_plans(config: SpeculativeConfig, layers: int) -> list[LayerPlan]:
    """One plan for each size that may be chosen."""
    size = config.layer_parallel.size
    sizes = _AUTO_SIZES if size == AUTO else [int(size)]
    return list(dict.fromkeys(_uniform(config, layers, each) for each in sizes))


def _uniform(config: SpeculativeConfig, layers: int, size: int) -> LayerPlan:
    options = config.layer_parallel
    try:
        return LayerPlan.uniform(layers, size, options.first, options.last)
    except ValueError as error:
        raise ConfigError(f"--speculative-config: layer_parallel: {error}") from None


def _probe(target: Target, loaded: _Loaded) -> probe.DraftProbe:
    return probe.DraftProbe(loaded.runner, loaded.model.vocab_size, _probe_size(target, loaded))


def _probe_size(target: Target, loaded: _Loaded) -> probe.ProbeSize:
    limits = target.plan.config
    size = probe.ProbeSize()
    for runner in (loaded.runner, target.runner):
        size = size.fitting(runner, limits.max_num_batched_tokens, limits.max_model_len)
    return size
