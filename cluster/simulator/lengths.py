"""Synthetic length distributions, written `fixed:N`, `uniform:LOW:HIGH` or `lognormal:MU:SIGMA`."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from twinflow.protos.errors import ConfigError

Drawn = NDArray[np.float64]
_FORMS = "fixed:N, uniform:LOW:HIGH (both included) or lognormal:MU:SIGMA (of ln tokens)"


def _fixed(rng: Generator, count: int, value: float) -> Drawn:
    return np.full(count, value)


def _uniform(rng: Generator, count: int, low: float, high: float) -> Drawn:
    return rng.integers(int(low), int(high) + 1, count).astype(np.float64)


def _lognormal(rng: Generator, count: int, mu: float, sigma: float) -> Drawn:
    return rng.lognormal(mu, sigma, count)


_DRAW: dict[str, tuple[int, Callable[..., Drawn]]] = {
    "fixed": (1, _fixed),
    "uniform": (2, _uniform),
    "lognormal": (2, _lognormal),
}


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of token counts.

    Attributes:
        name: `fixed`, `uniform` or `lognormal`.
        values: its parameters, in the order in which they are written.
    """

    name: str
    values: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        """Read the written form; raises ConfigError that names the forms there are."""
        name, *parts = text.split(":")
        try:
            values = tuple(float(part) for part in parts)
        except ValueError:
            values = ()
        count, _ = _DRAW.get(name, (0, _fixed))
        if not count or len(values) != count or not all(np.isfinite(values)):
            raise ConfigError(f"length distribution {text!r} is not one of {_FORMS}")
        if name != "lognormal" and (min(values) < 1 or list(values) != sorted(values)):
            raise ConfigError(f"length distribution {text!r} needs 1 <= LOW <= HIGH tokens")
        if name == "lognormal" and values[1] < 0:
            raise ConfigError(f"length distribution {text!r} needs SIGMA >= 0")
        return cls(name, values)

    def draw(self, rng: Generator, count: int) -> list[int]:
        """Draw `count` lengths, each at least 1 token."""
        _, sample = _DRAW[self.name]
        return [max(1, round(float(value))) for value in sample(rng, count, *self.values)]

    def __str__(self) -> str:
        return ":".join([self.name, *(f"{value:g}" for value in self.values)])
