"""Which requests come, and when: from a trace or from distributions, and a seed.

A trace is repeated until there are as many requests as wanted. If a rate is given, arrivals are
drawn; otherwise the trace's own times are kept, and each repetition follows on the one before.
Arrivals are made while the simulation runs, so that there may be millions of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.random import Generator

from twinflow.cluster.simulator.arrivals import Arrivals, Process
from twinflow.cluster.simulator.lengths import Lengths
from twinflow.cluster.simulator.traces import MOONCAKE_BLOCK_TOKENS, Shape
from twinflow.protos.errors import ConfigError

# How many draws are made at a time.
_DRAWN = 4096


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of a deployment.

    Attributes:
        requests: how many.
        shapes: a trace; empty if lengths are drawn.
        input_tokens: distribution of prompt lengths, without a trace.
        output_tokens: distribution of output lengths, without a trace.
        rate: requests per second; None for the times of the trace.
        length_scale: factor on every length.
        max_tokens: longest prompt and output together; longer prompts are cut.
        allowance: tokens that every request allows for its output, which ends on its own before
            that; None for exactly as many as it gets.
    """

    requests: int
    shapes: Sequence[Shape] = ()
    input_tokens: Lengths | None = None
    output_tokens: Lengths | None = None
    rate: float | None = None
    length_scale: float = 1.0
    max_tokens: int | None = None
    allowance: int | None = None

    def __post_init__(self) -> None:
        drawn = self.input_tokens is not None
        if drawn != (self.output_tokens is not None) or drawn == bool(self.shapes):
            raise ConfigError("give either --trace, or --input-tokens and --output-tokens")
        if self.requests < 1 or not self.length_scale > 0:
            raise ConfigError("--requests is at least 1 and --length-scale above 0")
        if self.rate is None and (drawn or self.shapes[0].at_s is None):
            raise ConfigError("--rate is needed: the workload has no arrival times of its own")
        if self.rate is None and self.requests > len(self.shapes) and not self.shapes[-1].at_s:
            raise ConfigError(
                "--rate is needed: all rows of the trace come at the same time, and how long after "
                "that they should come again is not known"
            )

    @property
    def block_tokens(self) -> int:
        """Tokens that a block of the trace stands for."""
        return max(1, round(MOONCAKE_BLOCK_TOKENS * self.length_scale))

    @property
    def shares_prefixes(self) -> bool:
        """Whether the trace says which prompts begin alike."""
        return any(shape.blocks for shape in self.shapes)

    def arrivals(self, seed: int) -> Iterator[tuple[float, Shape]]:
        """Times in seconds, ascending, and requests, fitted to the workload's bounds."""
        times_rng, lengths_rng = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
        times = self._times(times_rng) if self.rate is not None else None
        for own_time, shape in islice(self._endless(lengths_rng), self.requests):
            yield own_time if times is None else next(times), self._fit(shape)

    def _endless(self, rng: Generator) -> Iterator[tuple[float, Shape]]:
        """Requests of the trace with its own times, or drawn ones, for ever."""
        began = 0.0
        while self.shapes:
            for shape in self.shapes:
                yield began + (shape.at_s or 0.0), shape
            # One more mean gap, so that the last arrival and the first one are two.
            last = self.shapes[-1].at_s or 0.0
            began += last * (1 + 1 / len(self.shapes))
        while self.input_tokens and self.output_tokens:
            inputs = self.input_tokens.draw(rng, _DRAWN)
            outputs = self.output_tokens.draw(rng, _DRAWN)
            yield from ((0.0, Shape(*pair)) for pair in zip(inputs, outputs, strict=True))

    def _times(self, rng: Generator) -> Iterator[float]:
        arrivals, now = Arrivals(self.rate or 0.0, Process.POISSON), 0.0
        while True:
            for gap in rng.exponential(1.0 / arrivals.rate, _DRAWN):
                now += float(gap)
                yield now

    def _fit(self, shape: Shape) -> Shape:
        if self.length_scale == 1.0 and self.max_tokens is None:
            return shape
        outputs = max(1, round(shape.output_tokens * self.length_scale))
        inputs = max(1, round(shape.input_tokens * self.length_scale))
        if self.max_tokens is not None:
            outputs = min(outputs, self.max_tokens - 1)
            inputs = min(inputs, self.max_tokens - outputs)
        return Shape(inputs, outputs, shape.at_s, shape.blocks)


def prompt_tokens(shape: Shape, block_tokens: int) -> tuple[int, ...]:
    """Tokens of a prompt: equal where blocks are, and nobody looks at them otherwise."""
    if not shape.blocks:
        return (0,) * shape.input_tokens
    size = block_tokens
    tokens = [block for block in shape.blocks for _ in range(size)][: shape.input_tokens]
    return (*tokens, *((0,) * (shape.input_tokens - len(tokens))))
