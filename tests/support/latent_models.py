"""Latent attention on several ranks of this process, and what it is compared with."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from tests.support.tiny_models import tiny_config

from twinflow.parallel.latent.plan import LatentPlan
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.registry import create_sharing
from twinflow.parallel.latent.transforms.basis import LatentTransform
from twinflow.parallel.ranks.base import RankGroup
from twinflow.parallel.ranks.threads import run_ranks
from twinflow.runtime.models.config import LatentConfig, ModelConfig

R = TypeVar("R")


def latent_config(architecture: str = "DeepseekV3ForCausalLM", **changes: Any) -> ModelConfig:
    """A model with latent attention, eight heads and no experts; `changes` may be of either
    config."""
    inner = {name: changes.pop(name) for name in LatentConfig.__slots__ if name in changes}
    config = tiny_config(architecture, num_heads=8, moe=None, num_layers=2, **changes)
    assert config.latent is not None
    return replace(config, latent=replace(config.latent, **inner))


def run_latent_ranks(
    size: int,
    scheme: LatentScheme,
    work: Callable[[RankGroup, LatentPlan], R],
    transform: LatentTransform | None = None,
) -> list[R]:
    """What each of `size` ranks returns from `work`, given its part in a scheme."""
    if transform is not None:
        scheme = replace(scheme, basis=transform.id)

    def run(ranks: RankGroup) -> R:
        sharing = create_sharing(scheme, ranks, ranks.neighbours(scheme.shards))
        return work(ranks, LatentPlan(sharing, transform))

    return run_ranks(size, run)
