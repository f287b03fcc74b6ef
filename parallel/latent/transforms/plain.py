"""The transforms that need no calibration, by name. Does not load torch."""

from twinflow.protos.errors import ConfigError

NO_TRANSFORM = "none"
HADAMARD = "hadamard"
PLAIN_KINDS = (NO_TRANSFORM, HADAMARD)


def check_hadamard(width: int) -> None:
    """Refuse latents that have no Hadamard matrix here.

    Raises:
        ConfigError: their `width` is no power of two.
    """
    if width & (width - 1):
        raise ConfigError(
            f"the transform {HADAMARD} is for latents of a power of two of columns, not {width}"
        )
