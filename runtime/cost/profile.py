"""The file that keeps a fitted cost model, beside the model that it was measured on.

A profile holds for one model, device, dtype, number of threads and number of ranks; it names all
of them, and whoever wants step times says which ones it wants them for. Reading one needs neither
the model's directory nor torch.
"""

from pathlib import Path
from typing import Literal

import msgspec

from twinflow.parallel.partition.layout import Grid
from twinflow.protos.errors import ConfigError
from twinflow.runtime.cost.fit import Accuracy
from twinflow.runtime.cost.model import CostModel


class ProfileKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a profile holds for.

    Attributes:
        model: fingerprint of configuration and weights.
        device: name of the processor or accelerator.
        dtype: of weights and KV.
        threads: that compute on a CPU; 0 elsewhere.
        ranks: that share the model.
    """

    model: str
    device: str
    dtype: str
    threads: int
    ranks: int = 1


class LaneAccuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where steps were measured in pairs, and what predictions of such steps are worth.

    Attributes:
        backend: that divided the device.
        grid: its layouts.
        held_out: accuracy on pairs that nothing was fitted to.
        fitted: accuracy on those that contention was fitted to.
    """

    backend: str
    grid: Grid
    held_out: Accuracy
    fitted: Accuracy


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A fitted cost model and what it is worth.

    Attributes:
        version: of the file format.
        key: what it holds for.
        times: the model.
        held_out: accuracy on steps that it was not fitted to.
        fitted: accuracy on those that it was.
        lanes: the same of steps beside others; None if they were measured alone only.
    """

    version: Literal[2] = 2
    key: ProfileKey
    times: CostModel
    held_out: Accuracy
    fitted: Accuracy
    lanes: LaneAccuracy | None = None


def profile_path(directory: Path, key: ProfileKey) -> Path:
    """Where a profile lies in the directory of its model."""
    device = "".join(c if c.isalnum() else "-" for c in key.device.lower()).strip("-")
    parts = ["profile", device, key.dtype]
    parts += [f"t{key.threads}"] * bool(key.threads) + [f"tp{key.ranks}"] * (key.ranks > 1)
    return directory / f"twinflow-{'-'.join(parts)}.json"


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile, whole or not at all.

    Raises:
        ConfigError: it cannot be written there.
    """
    draft = path.with_name(path.name + ".part")
    try:
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n")
        draft.replace(path)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); name another place with --output"
        ) from error


def load_profile(path: Path, key: ProfileKey | None = None) -> Profile:
    """Read a profile.

    Args:
        path: the file.
        key: what it must hold for; None for whatever it does.

    Raises:
        ConfigError: the file is missing, damaged, or of another model, device, dtype, number of
            threads or number of ranks.
    """
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); `twinflow profile MODEL` writes it"
        ) from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigError(
            f"{path}: is no profile of this release ({error}); write it again with "
            f"`twinflow profile MODEL`"
        ) from error
    if key is not None and key != profile.key:
        name = next(
            f for f in ProfileKey.__struct_fields__ if getattr(key, f) != getattr(profile.key, f)
        )
        raise ConfigError(
            f"{path}: is a profile for {name} {getattr(profile.key, name)!r}, not "
            f"{getattr(key, name)!r}; measure again with `twinflow profile MODEL`"
        )
    return profile
