"""Chooses how much is proposed in a step: a pure function of what is known before it.

A step that verifies `rows` rows of proposals beside its `decoding` rows yields

    tokens = decoding + sum over requests of (a + a^2 + ... + a^levels)
    seconds = times(decoding + rows) + levels * draft_times(rows / levels) + catching up

on average, where a is the chance that a level of a proposal is accepted. What is maximised is
tokens / seconds, the goodput (SmartSpec, arXiv 2406.14066). Levels are given out greedily, those
with the most tokens per row first, so the best choice for any number of rows is among those looked
at. Proposing nothing is one of the choices.

Catching up is what a drafter with a model computes before its first proposal to a sequence: the
prompt, and what was said while nothing was proposed. It is paid once and serves all that follows,
so it is spread over the tokens that the request may still get. What follows happens under the load
that is coming, not the present one: of 32 requests that arrive together a few decode first, and
what is worth it for those is not once all do. So whoever has to catch up must be worth it with all
requests decoding that are here, too, and until that load was measured nobody is.

Times that were not measured are taken to be short, and nobody goes far beyond those that were: the
first step has no proposals, and each may have twice the rows of the largest that is known, or an
eighth more where somebody has to catch up for it.

A choice of nothing measures nothing. So a small share of the time is saved up, and when a proposal
to one request costs no more than what was saved, all that it has to catch up with included, it is
made to be measured. The first one that has to catch up with anything is such a proposal, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

# A proposal must promise so much more than none: predictions are off by as much.
_MARGIN = 1.02
# Steps may have so many times the rows of the largest one that was measured.
_FARTHEST = 2.0
# Likewise for rows of those that have to catch up: a mistake costs all of their prompts.
_FARTHEST_LATE = 1.125
# Catching up is spread over at most so many tokens: outputs may be shorter than they may become.
_MOST_TOKENS = 64
# So many tokens to catch up with show what one of them takes.
MEASURED_BEHIND = 16
_LEAST = 1e-9
FloatArray = NDArray[np.float64]
# (rows, seconds), by rows.
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that something may be proposed to.

    Attributes:
        acceptance: the chance that a level is accepted if the one before it was; below 1.
        limit: most nodes.
        behind: tokens that the drafter has to catch up with.
        remaining: most tokens that the request may still get.
    """

    acceptance: float
    limit: int
    behind: int = 0
    remaining: int = _MOST_TOKENS


@dataclass(frozen=True, slots=True)
class GoodputInputs:
    """What a choice depends on.

    Attributes:
        decoding: rows that decode anyway.
        candidates: who may get proposals.
        widths: nodes of each level of a proposal: ones for a chain.
        times: seconds of steps by their rows, as measured; seconds never decrease.
        draft_times: seconds of drafting a level by the rows of a level, as measured.
        behind_seconds: of catching up with a token; None if that was not measured.
        saved: seconds that a proposal may cost which is made only to be measured; None for no such
            proposal now.
        coming: requests that will decode soon: their prompts are being computed, or wait for that
            and there is room for them.
    """

    decoding: int
    candidates: tuple[Candidate, ...]
    widths: tuple[int, ...]
    times: Points = ()
    draft_times: Points = ()
    behind_seconds: float | None = None
    saved: float | None = None
    coming: int = 0


@dataclass(frozen=True, slots=True)
class GoodputChoice:
    """What was chosen.

    Attributes:
        limits: most nodes for each candidate.
        probe: the choice is not the best one, but made to be measured.
        extra_seconds: that the step is predicted to take longer than without proposals.
    """

    limits: tuple[int, ...]
    probe: bool = False
    extra_seconds: float = 0.0

    @property
    def rows(self) -> int:
        """Most rows of proposals."""
        return sum(self.limits)


def choose(inputs: GoodputInputs) -> GoodputChoice:
    """The limits with the largest predicted goodput; see the module."""
    nothing = GoodputChoice((0,) * len(inputs.candidates))
    base = seconds_of(inputs.times, inputs.decoding)
    if base <= 0.0 or not inputs.candidates:
        return nothing
    late = [n for n, one in enumerate(inputs.candidates) if one.behind >= MEASURED_BEHIND]
    if inputs.behind_seconds is None and late:
        # One level, so that what is measured is one pass over what was to be caught up with.
        return _probe(replace(inputs, widths=inputs.widths[:1]), base, late)
    left_out = _not_worth_it(inputs, late)
    if len(left_out) < len(inputs.candidates):
        limits, goodput, seconds = _best(_without(inputs, left_out), base)
        if goodput > _MARGIN * inputs.decoding / base:
            return GoodputChoice(limits, extra_seconds=seconds - base)
    if inputs.saved is None or inputs.saved < _least_late_seconds(inputs):
        return nothing
    probe = _probe(inputs, base, range(len(inputs.candidates)))
    return probe if probe.extra_seconds <= inputs.saved else nothing


def _least_late_seconds(inputs: GoodputInputs) -> float:
    """What the cheapest proposal takes at least: spares looking at any, as most often."""
    return (inputs.behind_seconds or 0.0) * min(one.behind for one in inputs.candidates)


def _not_worth_it(inputs: GoodputInputs, late: Sequence[int]) -> frozenset[int]:
    """Who of those that have to catch up should not under the load that is coming."""
    soon = replace(inputs, decoding=inputs.decoding + inputs.coming)
    if late and soon.decoding <= _FARTHEST_LATE * inputs.times[-1][0]:
        base = seconds_of(soon.times, soon.decoding)
        limits, goodput, _ = _best(soon, base, _FARTHEST_LATE)
        if goodput > _MARGIN * soon.decoding / base:
            return frozenset(n for n in late if not limits[n])
    return frozenset(late)


def _without(inputs: GoodputInputs, left_out: frozenset[int]) -> GoodputInputs:
    """The same, but that some candidates get nothing."""
    if not left_out:
        return inputs
    candidates = tuple(
        replace(one, limit=0) if n in left_out else one for n, one in enumerate(inputs.candidates)
    )
    return replace(inputs, candidates=candidates)


def _probe(inputs: GoodputInputs, base: float, among: Sequence[int]) -> GoodputChoice:
    """The best proposal to the one of some requests that has the least to catch up with."""

    def price(number: int) -> tuple[int, float]:
        candidate = inputs.candidates[number]
        return candidate.behind, -candidate.acceptance

    chosen = min(among, key=price)
    one = replace(inputs.candidates[chosen], remaining=1)
    (limit,), _, seconds = _best(replace(inputs, candidates=(one,)), base)
    limits = tuple(limit if n == chosen else 0 for n in range(len(inputs.candidates)))
    return GoodputChoice(limits, probe=True, extra_seconds=seconds - base)


def _best(
    inputs: GoodputInputs, base: float, farthest: float = _FARTHEST
) -> tuple[tuple[int, ...], float, float]:
    """The best limits that propose anything.

    Args:
        inputs: with a candidate that may get something.
        base: seconds of a step without proposals.
        farthest: the step may have so many times the rows of the largest that was measured.

    Returns:
        The limits, the tokens per second that they promise, and seconds of the step.
    """
    levels = _Levels.of(inputs, inputs.decoding / base)
    rows = np.cumsum(levels.rows)
    known = inputs.times[-1][0] * farthest - inputs.decoding
    reach = 1 + int(np.searchsorted(rows, known, side="right"))
    rows, depths = rows[:reach], np.maximum.accumulate(levels.depths[:reach])
    tokens = inputs.decoding + np.cumsum(levels.gains[:reach])
    seconds = _seconds(inputs.times, inputs.decoding + rows)
    seconds = seconds + depths * _seconds(inputs.draft_times, rows / depths)
    seconds = seconds + np.cumsum(levels.late_seconds[:reach])
    goodput = tokens / seconds
    best = int(goodput.argmax())
    limits = levels.limits(best + 1, len(inputs.candidates))
    return limits, float(goodput[best]), float(seconds[best])


def seconds_of(times: Points, rows: float) -> float:
    """How long a step takes, by interpolation; what was never measured is thought to be fast.

    Below the first point time is proportional to rows, which is less than it can be; behind the
    last one it stands still. So what is not known is tried once, and known afterwards.
    """
    return float(_seconds(times, np.array([rows]))[0])


def _seconds(times: Points, rows: NDArray[np.float64] | NDArray[np.int64]) -> FloatArray:
    known = np.array([(0.0, 0.0), *times])
    seconds: FloatArray = np.interp(rows.astype(np.float64), known[:, 0], known[:, 1])
    return seconds


@dataclass(frozen=True, slots=True)
class _Levels:
    """Every level that may be given out, the one with the most tokens per row first.

    Attributes:
        gains: tokens that each yields on average.
        rows: that it costs.
        depths: levels of the proposal down to it.
        late_seconds: of the candidate's catching up, in its first level.
        candidates: whose it is.
    """

    gains: FloatArray
    rows: NDArray[np.int64]
    depths: NDArray[np.int64]
    late_seconds: FloatArray
    candidates: NDArray[np.int64]

    @classmethod
    def of(cls, inputs: GoodputInputs, tokens_per_second: float) -> "_Levels":
        """All levels of all candidates; tokens per second without any tell what seconds are worth.

        Whoever has to catch up with much comes behind others whose levels are worth as much.
        """
        widths = np.array(inputs.widths, dtype=np.int64)
        rates = np.array([one.acceptance for one in inputs.candidates])
        limits = np.array([one.limit for one in inputs.candidates], dtype=np.int64)
        behind = np.array([one.behind for one in inputs.candidates])
        spread = np.array([min(one.remaining, _MOST_TOKENS) for one in inputs.candidates])
        depths = np.arange(1, len(widths) + 1)
        rows = np.clip(limits[:, None] - (np.cumsum(widths) - widths), 0, widths)
        gains = rates[:, None] ** depths * rows / widths
        total = gains.sum(axis=1)
        late = (inputs.behind_seconds or 0.0) * behind / np.maximum(1.0, spread / (1.0 + total))
        left = 1.0 - tokens_per_second * late / np.maximum(total, _LEAST)
        # Never above that of the level before: none is given out before the one above it.
        density = left[:, None] * gains / np.maximum(rows, 1)
        density = np.minimum.accumulate(density, axis=1)
        whose, level = np.nonzero(rows)
        order = np.lexsort((level, -density[whose, level]))
        whose, level = whose[order], level[order]
        first = np.where(level == 0, late[whose], 0.0)
        return cls(gains[whose, level], rows[whose, level], depths[level], first, whose)

    def limits(self, count: int, candidates: int) -> tuple[int, ...]:
        """Nodes for each candidate if the first `count` levels are given out."""
        given = np.bincount(self.candidates[:count], self.rows[:count], minlength=candidates)
        return tuple(map(int, given))
