"""Settles how a deployment shares latents, and what is known of the loss.

Only tensor-parallel latent attention (`tpla`) loses anything. It is refused unless the loss was
measured by `twinflow calibrate tpla`, or the operator insists. Whether the ranks of a worker can
form the groups that share latents is `preflight`'s.
"""

from dataclasses import dataclass
from pathlib import Path

from twinflow.cluster.config import ServeConfig
from twinflow.parallel.latent.kind import LatentKind
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.transforms.plain import (
    HADAMARD,
    NO_TRANSFORM,
    PLAIN_KINDS,
    check_hadamard,
)
from twinflow.protos.errors import ConfigError, SetupError
from twinflow.runtime.calibration.measured import (
    MeasuredTransform,
    find_measured,
    transform_file,
)
from twinflow.runtime.calibration.report import QualityRow
from twinflow.runtime.checkpoint.config import load_model_config

_DEFAULT_TRANSFORM = "joint-exact1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentChoice:
    """What all workers of a deployment are told.

    Attributes:
        parallel: how the ranks of a decode worker share latents.
        shards: ranks that share one cache.
        transform: `none`, `hadamard` or the file of a transform.
        quality: what was measured of it; None if nothing is approximated, or nothing was measured.
        warning: what an operator should read at start; empty if attention is exact.
    """

    parallel: LatentKind = "replicated"
    shards: int = 1
    transform: str = NO_TRANSFORM
    quality: QualityRow | None = None
    warning: str = ""


NO_SHARING = LatentChoice()


def choose_latents(config: ServeConfig) -> LatentChoice:
    """What a configuration asks for.

    Raises:
        CheckpointError: the model cannot be read, or the report of a calibration is damaged.
        ConfigError: the model has no latents or none that can be cut so, or nobody has measured the
            loss and the operator does not insist, or insists on what does not exist.
    """
    kind, shards = config.mla_parallel, config.latent_shards
    if kind == "replicated":
        return NO_SHARING
    directory = Path(config.model)
    model = load_model_config(directory)
    if model.latent is None:
        raise ConfigError(
            f"--mla-parallel {kind}: {model.architecture} has no latent attention to share; leave "
            f"the flag out"
        )
    if kind == "dcp" or shards == 1:
        # A single shard has every column, whose basis does not matter.
        return LatentChoice(parallel=kind, shards=shards)
    transform = config.tpla_transform or _DEFAULT_TRANSFORM
    if transform in PLAIN_KINDS:
        _check_plain(transform, shards, model.latent.kv_rank)
    try:
        found = find_measured(directory, transform, shards)
    except SetupError as error:
        if not config.force:
            raise
        return LatentChoice(
            parallel=kind,
            shards=shards,
            transform=_unmeasured(directory, transform, shards),
            warning=f"tpla approximates attention, and nobody knows how well: {error.message}",
        )
    return _measured(found, shards)


def _check_plain(transform: str, shards: int, kv_rank: int) -> None:
    """Refuse a transform that nobody has tried on the model if it does not suit its latents."""
    if transform == HADAMARD:
        check_hadamard(kv_rank)
    try:
        LatentScheme(kind="tpla", shards=shards).slice_width(kv_rank)
    except ConfigError as error:
        raise ConfigError(f"--mla-shards {shards}: {error.message}") from error


def _unmeasured(model: Path, transform: str, shards: int) -> str:
    """What workers are told of a transform without a report.

    Raises:
        ConfigError: it is made by a calibration, and was not.
    """
    if transform in PLAIN_KINDS:
        return transform
    path = transform_file(model, transform, shards)
    if path.is_file():
        return str(path.resolve())
    raise ConfigError(
        f"--tpla-transform {transform}: {path}: no such file, and --force does not make it: run "
        f"twinflow calibrate tpla {model} --text FILE --shards {shards}, or use "
        f"--tpla-transform {' or '.join(PLAIN_KINDS)}, which need no calibration"
    )


def _measured(found: MeasuredTransform, shards: int) -> LatentChoice:
    return LatentChoice(
        parallel="tpla",
        shards=shards,
        transform=str(found.path.resolve()),
        quality=found.row,
        warning=found.describe(),
    )
