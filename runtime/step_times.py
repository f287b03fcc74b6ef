"""Finds the step times that were measured for an engine, if any were."""

from pathlib import Path

import structlog
import torch

from twinflow.protos.errors import ConfigError
from twinflow.runtime.cost.base import StepTimes
from twinflow.runtime.cost.device_name import device_name
from twinflow.runtime.cost.profile import ProfileKey, load_profile, profile_path


def engine_key(fingerprint: str, device: str, dtype: str, ranks: int = 1) -> ProfileKey:
    """What a profile must hold for, to be of use to an engine in this process.

    Args:
        fingerprint: of the model.
        device: `cpu`, or a CUDA device.
        dtype: of weights and KV.
        ranks: that share the model.
    """
    return ProfileKey(
        model=fingerprint,
        device=device_name(device),
        dtype=dtype,
        threads=torch.get_num_threads() if device == "cpu" else 0,
        ranks=ranks,
    )


def measured_times(directory: Path, key: ProfileKey, *, wanted: bool) -> StepTimes | None:
    """Step times from the directory of the model.

    A profile that cannot be used is no reason not to serve; the log says so, and also that there is
    none where an objective needs one.

    Args:
        directory: of the model.
        key: what they must hold for.
        wanted: somebody set an objective that means nothing without step times.
    """
    path = profile_path(directory, key)
    if not path.exists():
        if wanted:
            structlog.get_logger().warning(
                "step times are not known: --tbt-objective-ms has no effect on schedules",
                expected=str(path),
                remedy=f"twinflow profile {directory}",
            )
        return None
    try:
        profile = load_profile(path, key)
    except ConfigError as error:
        structlog.get_logger().warning("a profile is not used", reason=error.message)
        return None
    structlog.get_logger().info("step times", profile=str(path), error=profile.held_out.median)
    return profile.times
