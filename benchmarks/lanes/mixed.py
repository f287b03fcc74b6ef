"""Requests of two kinds: 60 % like ShareGPT's, 40 % like those of Long Data Collections.

Lengths are drawn from log-normal distributions with the medians and means that Nexus states for
these data (arXiv 2507.06608, table of workloads), cut at its 99th percentiles; the data themselves
are not here.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from twinflow.cluster.simulator.traces import Shape

_LONG_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Tokens:
    """A distribution of lengths.

    Attributes:
        mean: before it is cut.
        median: likewise.
        most: where it is cut.
    """

    mean: float
    median: float
    most: int

    def draw(self, rng: Generator, count: int) -> NDArray[np.int64]:
        """Draw lengths, at least 1 token each."""
        sigma = math.sqrt(2.0 * math.log(self.mean / self.median))
        values = rng.lognormal(math.log(self.median), sigma, count)
        return np.clip(np.rint(values), 1, self.most).astype(np.int64)


_SHORT = (Tokens(496, 432, 1367), Tokens(97, 37, 474))
_LONG = (Tokens(5905, 5461, 9817), Tokens(180, 159, 454))


def mixed(count: int, seed: int) -> list[Shape]:
    """Draw requests; arrival times are the simulation's."""
    rng = np.random.default_rng(seed)
    is_long = rng.random(count) < _LONG_SHARE
    inputs, outputs = (
        np.where(is_long, long.draw(rng, count), short.draw(rng, count))
        for short, long in zip(_SHORT, _LONG, strict=True)
    )
    return [Shape(int(prompt), int(output)) for prompt, output in zip(inputs, outputs, strict=True)]
