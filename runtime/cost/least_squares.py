"""Least squares with coefficients that are not negative.

The active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23), for
the handful of columns that a cost model has.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TOLERANCE = 1e-12


def non_negative(columns: Floats, target: Floats) -> Floats:
    """The x >= 0 with the least |columns x - target|.

    Args:
        columns: float64 [samples, coefficients]; a column of zeros gets the coefficient 0.
        target: float64 [samples].
    """
    scale = np.linalg.norm(columns, axis=0)
    scale[scale == 0.0] = 1.0
    scaled = columns / scale
    count = scaled.shape[1]
    x = np.zeros(count)
    free = np.zeros(count, dtype=bool)
    for _ in range(3 * count):
        gradient = scaled.T @ (target - scaled @ x)
        gradient[free] = -np.inf
        candidate = int(gradient.argmax())
        if gradient[candidate] <= _TOLERANCE * max(1.0, float(np.linalg.norm(target))):
            break
        free[candidate] = True
        x = _descend(scaled, target, x, free)
    unscaled: Floats = x / scale
    return unscaled


def _descend(columns: Floats, target: Floats, x: Floats, free: NDArray[np.bool_]) -> Floats:
    """Solve for the free coefficients, pinning those that would fall below 0; changes `free`."""
    while free.any():
        solution = np.zeros_like(x)
        solution[free] = np.linalg.lstsq(columns[:, free], target, rcond=None)[0]
        falling = free & (solution <= 0.0)
        if not falling.any():
            return solution
        step = float(np.min(x[falling] / (x[falling] - solution[falling] + _TOLERANCE)))
        x = x + step * (solution - x)
        free &= x > _TOLERANCE
        x[~free] = 0.0
    return np.zeros_like(x)
