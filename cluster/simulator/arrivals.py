"""Arrival processes: when requests are due. Drawn before the run, never adjusted during it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from twinflow.protos.errors import ConfigError

Gaps = NDArray[np.float64]


class Process(StrEnum):
    """Distribution of the gaps between arrivals. All have the same mean, 1 / rate."""

    POISSON = "poisson"
    GAMMA = "gamma"
    CONSTANT = "constant"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """An arrival process.

    Attributes:
        rate: requests per second.
        process: distribution of the gaps.
        cv: coefficient of variation of gamma gaps; 1 is Poisson, 2 to 4 is bursty.
    """

    rate: float
    process: Process = Process.POISSON
    cv: float = 1.0

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ConfigError(f"--rate must be above 0 requests per second, not {self.rate}")
        if not self.cv > 0:
            raise ConfigError(f"--cv must be above 0, not {self.cv}")


def _poisson(arrivals: Arrivals, count: int, rng: Generator) -> Gaps:
    return rng.exponential(1.0 / arrivals.rate, count)


def _gamma(arrivals: Arrivals, count: int, rng: Generator) -> Gaps:
    # A gamma variable of shape k and scale s has mean k·s and CV 1/√k.
    shape = 1.0 / arrivals.cv**2
    return rng.gamma(shape, 1.0 / (arrivals.rate * shape), count)


def _constant(arrivals: Arrivals, count: int, rng: Generator) -> Gaps:
    return np.full(count, 1.0 / arrivals.rate)


_DRAW: dict[Process, Callable[[Arrivals, int, Generator], Gaps]] = {
    Process.POISSON: _poisson,
    Process.GAMMA: _gamma,
    Process.CONSTANT: _constant,
}


def arrival_times(arrivals: Arrivals, count: int, rng: Generator) -> list[float]:
    """Draw `count` arrival times in ascending order, in seconds; the first comes after one gap."""
    return [float(time) for time in np.cumsum(_DRAW[arrivals.process](arrivals, count, rng))]
