"""Kinds of sharing by name."""

from collections.abc import Callable

from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.parallel.latent.sharing.dcp import ContextParallel
from twinflow.parallel.latent.sharing.replicated import Replicated
from twinflow.parallel.latent.sharing.tpla import TensorParallelLatent
from twinflow.parallel.ranks.base import RankGroup
from twinflow.protos.errors import ConfigError

SharingBuilder = Callable[[LatentScheme, RankGroup, RankGroup], LatentSharing]

_KINDS: dict[str, SharingBuilder] = {}


def register_sharing(kind: str, build: SharingBuilder) -> None:
    """Make a kind available; a name can be taken only once."""
    if kind in _KINDS:
        raise ValueError(f"a sharing of latents named {kind!r} is already registered")
    _KINDS[kind] = build


def create_sharing(scheme: LatentScheme, ranks: RankGroup, shards: RankGroup) -> LatentSharing:
    """How a rank of a decode worker takes part in a scheme.

    Args:
        scheme: of the deployment.
        ranks: all ranks of the worker.
        shards: the neighbours that share a cache, `scheme.shards` of them.

    Raises:
        ConfigError: the kind is unknown, or the groups do not fit.
    """
    build = _KINDS.get(scheme.kind)
    if build is None:
        raise ConfigError(f"latents {scheme.kind!r}: unknown; choose one of {sorted(_KINDS)}")
    if shards.size != scheme.shards:
        raise ConfigError(f"{shards.size} ranks share a cache that is cut for {scheme.shards}")
    return build(scheme, ranks, shards)


register_sharing("replicated", lambda scheme, ranks, _shards: Replicated(scheme, ranks))
register_sharing("dcp", ContextParallel)
register_sharing("tpla", TensorParallelLatent)
