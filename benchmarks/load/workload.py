"""Turns a workload description and seeds into a plan: every request, decided before the run.

Each property has a random stream of its own, so that adding a share of disconnects changes
neither the arrivals nor the lengths. Prompts are made by `benchmarks.load.prompts`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.random import Generator

from benchmarks.load.records import Kind, PlannedRequest
from twinflow.cluster.simulator.arrivals import Arrivals, arrival_times
from twinflow.cluster.simulator.lengths import Lengths
from twinflow.cluster.simulator.traces import Shape, read_trace
from twinflow.protos.errors import ConfigError


class Stream(IntEnum):
    """One random stream per property of a request."""

    ARRIVAL = 1
    LENGTH = 2
    KIND = 3
    PREFIX = 4


@dataclass(frozen=True, slots=True)
class Workload:
    """What is sent.

    Attributes:
        requests: how many.
        input_tokens: prompt lengths, unless a trace gives them.
        output_tokens: output lengths, unless a trace gives them.
        trace: file that gives lengths, and arrival times unless an arrival process does.
        length_scale: factor on every length; 1/16 fits a long trace to a small model.
        time_scale: factor on a trace's arrival times; 2 halves its rate.
        max_input_tokens: longer prompts are cut to this; None for no bound.
        max_output_tokens: longer outputs are cut to this; None for no bound.
        prefixes: number of shared prefixes, each request starting with one; 0 for none.
        prefix_tokens: length of a shared prefix, on top of the input length.
        disconnect_share: share of requests whose client hangs up within the output.
        bad_share: share of requests that a server must refuse.
    """

    requests: int
    input_tokens: Lengths
    output_tokens: Lengths
    trace: Path | None = None
    length_scale: float = 1.0
    time_scale: float = 1.0
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    prefixes: int = 0
    prefix_tokens: int = 0
    disconnect_share: float = 0.0
    bad_share: float = 0.0

    def __post_init__(self) -> None:
        shares = {"--disconnect-share": self.disconnect_share, "--bad-share": self.bad_share}
        for flag, share in shares.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"{flag} must be between 0 and 1, not {share}")
        if sum(shares.values()) > 1:
            raise ConfigError("--disconnect-share and --bad-share add up to more than 1")
        for flag, scale in {"--length": self.length_scale, "--time": self.time_scale}.items():
            if not scale > 0:
                raise ConfigError(f"{flag}-scale must be above 0, not {scale}")
        if self.requests < 1:
            raise ConfigError(f"--requests must be at least 1, not {self.requests}")
        if (self.prefixes > 0) != (self.prefix_tokens > 0):
            raise ConfigError("--prefixes and --prefix-tokens go together, both above 0")


def _rng(seed: Sequence[int], stream: Stream) -> Generator:
    return np.random.default_rng([*seed, stream])


def _shapes(workload: Workload, rng: Generator) -> list[Shape]:
    """Raw shapes: the first rows of a trace that has times, else a seeded draw."""
    if workload.trace is None:
        inputs = workload.input_tokens.draw(rng, workload.requests)
        outputs = workload.output_tokens.draw(rng, workload.requests)
        return [Shape(*pair) for pair in zip(inputs, outputs, strict=True)]
    rows = read_trace(workload.trace)
    if len(rows) < workload.requests:
        raise ConfigError(
            f"--requests {workload.requests} is more than the {len(rows)} of {workload.trace}"
        )
    if rows[0].at_s is not None:
        return rows[: workload.requests]
    return [rows[i] for i in rng.choice(len(rows), workload.requests, replace=False)]


def _scaled(tokens: int, scale: float, most: int | None) -> int:
    scaled = max(1, round(tokens * scale))
    return scaled if most is None else min(scaled, most)


def _fit(shape: Shape, workload: Workload) -> Shape:
    """Apply the workload's scales and bounds."""
    scale = workload.length_scale
    return replace(
        shape,
        input_tokens=_scaled(shape.input_tokens, scale, workload.max_input_tokens),
        output_tokens=_scaled(shape.output_tokens, scale, workload.max_output_tokens),
    )


def _due_times(
    workload: Workload, arrivals: Arrivals | None, shapes: Sequence[Shape], rng: Generator
) -> list[float]:
    if arrivals is not None:
        return arrival_times(arrivals, len(shapes), rng)
    times = [shape.at_s * workload.time_scale for shape in shapes if shape.at_s is not None]
    if len(times) != len(shapes):
        raise ConfigError("--rate is needed: the workload has no arrival times of its own")
    return times


def _kinds(workload: Workload, rng: Generator) -> list[Kind]:
    shares = [workload.bad_share, workload.disconnect_share]
    drawn = rng.choice(
        [Kind.BAD.value, Kind.DISCONNECT.value, Kind.GOOD.value],
        workload.requests,
        p=[*shares, 1 - sum(shares)],
    )
    return [Kind(str(kind)) for kind in drawn]


def make_plan(
    workload: Workload, arrivals: Arrivals | None, seed: Sequence[int]
) -> list[PlannedRequest]:
    """Draw every request of a run.

    Args:
        workload: what to send.
        arrivals: when; None for the times of the trace.
        seed: equal seeds give equal plans.

    Raises:
        ConfigError: the trace is unusable or too short, or there are no arrival times.
    """
    raw = _shapes(workload, _rng(seed, Stream.LENGTH))
    due = _due_times(workload, arrivals, raw, _rng(seed, Stream.ARRIVAL))
    kind_rng, prefix_rng = _rng(seed, Stream.KIND), _rng(seed, Stream.PREFIX)
    kinds = _kinds(workload, kind_rng)
    plan = []
    for index, (shape, due_s, kind) in enumerate(zip(raw, due, kinds, strict=True)):
        fitted = _fit(shape, workload)
        hang_up = int(kind_rng.integers(1, max(2, fitted.output_tokens)))
        prefix = int(prefix_rng.integers(workload.prefixes)) if workload.prefixes else None
        plan.append(
            PlannedRequest(
                index=index,
                due_s=due_s,
                shape=fitted,
                kind=kind,
                prefix=prefix,
                hang_up_after=hang_up if kind is Kind.DISCONNECT else None,
            )
        )
    return plan
