"""Numbers as people type them: `32k` tokens, `4GiB` of memory.

Pure conversions; which option takes which quantity is `twinflow.cluster.config`'s business.
"""

import re
from collections.abc import Mapping

_WHOLE = re.compile(r"[+-]?\d+")
_SCALED = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)")

# As in vLLM: lower case is decimal, upper case binary.
_COUNT_UNITS = {
    "": 1,
    **{unit: 1000 ** (power + 1) for power, unit in enumerate("kmgt")},
    **{unit: 1024 ** (power + 1) for power, unit in enumerate("KMGT")},
}
_MEMORY_UNITS = {
    **_COUNT_UNITS,
    "B": 1,
    **{f"{unit}B": 1000 ** (power + 1) for power, unit in enumerate("KMGT")},
    **{f"{unit}i": 1024 ** (power + 1) for power, unit in enumerate("KMGT")},
    **{f"{unit}iB": 1024 ** (power + 1) for power, unit in enumerate("KMGT")},
}


def whole(value: object) -> int:
    """A whole number without a unit.

    Raises:
        ValueError: not a whole number; true and false are not numbers here.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    raise ValueError("must be a whole number")


def count(value: object) -> int:
    """A number of things: `2048`, `32k` (32000), `32K` (32768), `1.5m`.

    Raises:
        ValueError: not a number of things.
    """
    return _scaled(value, _COUNT_UNITS, "must be a whole number such as 2048, 32k or 32K")


def memory(value: object) -> int:
    """An amount of memory in bytes: `4GiB`, `4Gi`, `4G` (binary), `4000MB` (decimal), `1048576`.

    Raises:
        ValueError: not an amount of memory.
    """
    return _scaled(value, _MEMORY_UNITS, "must be an amount of memory such as 4GiB or 4000MB")


def in_seconds(milliseconds: float | None) -> float | None:
    """The same time; none is none."""
    return None if milliseconds is None else milliseconds / 1000


def _scaled(value: object, units: Mapping[str, int], complaint: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SCALED.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match["unit"] not in units:
        raise ValueError(complaint)
    # Digits, not floats: 0.1GB is 100000000 bytes and nothing nearby.
    integer, _, fraction = match["number"].partition(".")
    denominator: int = 10 ** len(fraction)
    scaled, rest = divmod(int(integer + fraction) * units[match["unit"]], denominator)
    if rest:
        raise ValueError(complaint)
    return scaled
