"""How much of a device's speed a share of its processors gives.

    g(x) = x                       up to the saturation point
    g(x) = R + lambda (x - R)      above it

as in Nexus (arXiv 2507.06608, section 4; the form above the saturation point is a reading of its
words), scaled so that g(1) = 1: what is measured with all processors is what the whole device
achieves. Arithmetic and memory traffic have a curve each, because memory is saturated earlier.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_GRID = 41
_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class SpeedCurve:
    """A two-regime curve.

    Attributes:
        saturation: R, the share up to which speed grows in proportion; above 0, at most 1.
        slope: lambda, of the growth above it; 0 to 1.
    """

    saturation: float = 1.0
    slope: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.saturation <= 1.0 or not 0.0 <= self.slope <= 1.0:
            raise ValueError(
                f"a speed curve needs 0 < saturation <= 1 and 0 <= slope <= 1, not "
                f"{self.saturation} and {self.slope}"
            )

    def speed(self, share: float) -> float:
        """Speed of a share of the processors, as a part of that of all of them."""
        if not 0.0 < share <= 1.0:
            raise ValueError(f"a share is above 0 and at most 1, not {share}")
        knee, slope = self.saturation, self.slope
        grown = share if share <= knee else knee + slope * (share - knee)
        return grown / (knee + slope * (1.0 - knee))


def fit_curve(shares: Sequence[float], speeds: Sequence[float]) -> SpeedCurve:
    """The curve with the least squared relative error.

    A grid of saturation points and slopes, refined around the best pair: two parameters need no
    better search, and a grid has no local optimum to be caught in.

    Args:
        shares: of the processors, at least one below 1, else the curve is a straight line.
        speeds: measured at each share, as parts of that at share 1.
    """
    x, y = np.asarray(shares, dtype=np.float64), np.asarray(speeds, dtype=np.float64)
    below = x < 1.0
    if not below.any():
        return SpeedCurve()
    x, y = x[below], y[below]
    # Below the smallest share that was measured a saturation point shows nowhere.
    low, high = np.array([x.min(), 0.0]), np.array([1.0, 1.0])
    best = np.array([1.0, 1.0])
    for _ in range(_ROUNDS):
        knees = np.linspace(low[0], high[0], _GRID)
        slopes = np.linspace(low[1], high[1], _GRID)
        errors = _errors(x, y, knees[:, None, None], slopes[None, :, None])
        knee, slope = np.unravel_index(int(errors.argmin()), errors.shape)
        best = np.array([knees[knee], slopes[slope]])
        step = (high - low) / (_GRID - 1)
        floor = np.array([x.min(), 0.0])
        low, high = np.maximum(best - 4 * step, floor), np.minimum(best + 4 * step, 1.0)
    return SpeedCurve(float(best[0]), float(best[1]))


def _errors(x: Floats, y: Floats, knee: Floats, slope: Floats) -> Floats:
    grown = np.where(x <= knee, x, knee + slope * (x - knee))
    predicted = grown / (knee + slope * (1.0 - knee))
    squares: Floats = ((predicted / y - 1.0) ** 2).sum(axis=-1)
    return squares
