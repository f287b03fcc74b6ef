"""Settles how a worker takes part in the latent attention of its deployment; loads no weights.

All workers of a deployment are told the same scheme. Decode and mixed workers follow it. A prefill
worker holds every part of the latents on every rank, whatever the scheme, and so is exact: it makes
latents in the scheme's basis and hands each decode rank the parts and blocks that are its own.
"""

from dataclasses import dataclass
from pathlib import Path

from twinflow.parallel.latent.kind import LatentKind
from twinflow.parallel.latent.plan import LatentPlan
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.registry import create_sharing
from twinflow.parallel.latent.sharing.replicated import Replicated
from twinflow.parallel.latent.transforms.basis import LatentTransform
from twinflow.parallel.latent.transforms.file import StoredTransform
from twinflow.parallel.latent.transforms.fitting import plain_transform
from twinflow.parallel.latent.transforms.plain import NO_TRANSFORM
from twinflow.parallel.latent.transforms.registry import create_transform_kind, transform_kinds
from twinflow.parallel.ranks.base import RankGroup
from twinflow.protos.errors import ConfigError
from twinflow.runtime.models.config import LatentConfig, ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentOptions:
    """What an operator may choose about latent attention.

    Attributes:
        parallel: how the ranks of a decode worker share latents.
        shards: ranks that share one cache, of `dcp` and `tpla`.
        transform: basis of the latents of `tpla`: `none`, `hadamard`, or a file that
            `twinflow calibrate tpla` has written.
        hold_all: this worker's ranks all hold everything, as those of a prefill worker do.
    """

    parallel: LatentKind = "replicated"
    shards: int = 1
    transform: str = NO_TRANSFORM
    hold_all: bool = False


@dataclass(frozen=True, slots=True)
class LatentSetup:
    """The part of a worker in latent attention.

    Attributes:
        scheme: of the deployment.
        transform: bases of the latents; None for latents as the model makes them.
        hold_all: see `LatentOptions`.
        path: file of the transform, if it comes from one.
        stored: what is in it.
    """

    scheme: LatentScheme
    transform: LatentTransform | None
    hold_all: bool
    path: Path | None = None
    stored: StoredTransform | None = None

    def plan(self, ranks: RankGroup) -> LatentPlan:
        """The part of one rank; the ranks need not be connected yet.

        Raises:
            ConfigError: so many ranks cannot follow the scheme.
        """
        scheme = self.scheme
        if self.hold_all:
            return LatentPlan(Replicated(scheme, ranks), self.transform)
        scheme.check_ranks(ranks.size)
        shards = ranks.neighbours(scheme.shards)
        return LatentPlan(create_sharing(scheme, ranks, shards), self.transform)

    def check_model(self, fingerprint: str) -> None:
        """Refuse a transform that was made from another model.

        Raises:
            ConfigError: the weights are others.
        """
        if self.path is not None and self.stored is not None:
            self.stored.check_model(self.path, fingerprint)


def settle_latents(options: LatentOptions, model: ModelConfig) -> LatentSetup | None:
    """What the options come down to for a model; None if it has no latent attention.

    Raises:
        CheckpointError: the file of a transform is missing or damaged.
        ConfigError: an option does not fit the model, or another option.
    """
    _check_together(options)
    if model.latent is None:
        if options.parallel != "replicated":
            raise ConfigError(
                f"--mla-parallel {options.parallel}: {model.architecture} has no latent attention "
                f"to share; leave the flag out"
            )
        return None
    if options.parallel != "tpla":
        scheme = LatentScheme(kind=options.parallel, shards=options.shards)
        return LatentSetup(scheme, None, options.hold_all)
    setup = _sliced(options, model, model.latent)
    try:
        setup.scheme.slice_width(model.latent.kv_rank)
    except ConfigError as error:
        raise ConfigError(f"--mla-shards {options.shards}: {error.message}") from error
    return setup


def _check_together(options: LatentOptions) -> None:
    if options.shards < 1:
        raise ConfigError(f"--mla-shards {options.shards}: must be at least 1")
    if options.parallel == "replicated" and options.shards > 1:
        raise ConfigError(
            f"--mla-shards {options.shards}: only --mla-parallel dcp and tpla have shards"
        )
    if options.parallel != "tpla" and options.transform != NO_TRANSFORM:
        raise ConfigError(
            f"--tpla-transform {options.transform}: only --mla-parallel tpla transforms latents"
        )


def _sliced(options: LatentOptions, model: ModelConfig, latent: LatentConfig) -> LatentSetup:
    """A scheme of slices, in the basis that was asked for."""
    name, shards = options.transform, options.shards
    if name == NO_TRANSFORM:
        return LatentSetup(LatentScheme(kind="tpla", shards=shards), None, options.hold_all)
    if name in transform_kinds():
        kind = create_transform_kind(name)
        transform = plain_transform(kind, model.num_layers, latent.kv_rank)
        scheme = LatentScheme(kind="tpla", shards=shards, basis=transform.id)
        return LatentSetup(scheme, transform, options.hold_all)
    path = Path(name)
    stored = StoredTransform.read(path)
    stored.check_shape(path, model.num_layers, latent.kv_rank, shards)
    return LatentSetup(stored.scheme, stored.transform, options.hold_all, path, stored)
