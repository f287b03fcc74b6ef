"""Settles how a deployment shares latents, and what is known of the loss.

Only tensor-parallel latent attention (`tpla`) loses anything. It is refused unless the loss was
measured by `twinflow calibrate tpla`, or the operator insists. Whether the ranks of a worker can
share latents so is found by the workers.
"""

from dataclasses import dataclass
from pathlib import Path

from twinflow.cluster.config import ServeConfig
from twinflow.parallel.latent.kind import LatentKind
from twinflow.protos.errors import ConfigError, SetupError
from twinflow.runtime.calibration.measured import MeasuredTransform, find_measured
from twinflow.runtime.calibration.report import QualityRow
from twinflow.runtime.checkpoint.config import load_model_config

_BASIS_AS_IS = "none"


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
    transform: str = _BASIS_AS_IS
    quality: QualityRow | None = None
    warning: str = ""


NO_SHARING = LatentChoice()


def choose_latents(config: ServeConfig) -> LatentChoice:
    """What a configuration asks for.

    Raises:
        CheckpointError: the model cannot be read, or the report of a calibration is damaged.
        ConfigError: the model has no latents, or nobody has measured the loss and the operator
            does not insist.
    """
    kind, shards = config.mla_parallel, config.mla_shards or 1
    if kind != "tpla":
        return LatentChoice(parallel=kind, shards=shards)
    directory, transform = Path(config.model), config.tpla_transform
    model = load_model_config(directory)
    if model.latent is None:
        raise ConfigError(
            f"--mla-parallel tpla: {model.architecture} has no latent attention to share; leave "
            f"the flag out"
        )
    try:
        found = find_measured(directory, transform, shards)
    except SetupError as error:
        if not config.force:
            raise
        return LatentChoice(
            parallel=kind,
            shards=shards,
            transform=transform,
            warning=f"tpla approximates attention, and nobody knows how well: {error.message}",
        )
    return _measured(found, shards)


def _measured(found: MeasuredTransform, shards: int) -> LatentChoice:
    return LatentChoice(
        parallel="tpla",
        shards=shards,
        transform=str(found.path.resolve()),
        quality=found.row,
        warning=found.describe(),
    )
