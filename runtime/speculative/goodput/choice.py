"""Chooses how much is proposed in a step: a pure function of what is known before it.

A step that verifies `rows` rows of proposals beside its `decoding` rows yields

    tokens = decoding + sum over requests of (a + a^2 + ... + a^levels)
    seconds = times(decoding + rows) + levels * draft_seconds

on average, where a is the chance that a level of a proposal is accepted. What is maximised is
tokens / seconds, the goodput (SmartSpec, arXiv 2406.14066). Levels are given out greedily, those
with the most tokens per row first, so the best choice for any number of rows is among those looked
at. Proposing nothing is one of the choices.

A choice of nothing measures nothing. So a small share of the time is saved up, and when the best
proposal costs no more than what was saved, it is made to be measured.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A proposal must promise so much more than none: predictions are off by as much.
_MARGIN = 1.02
# (rows, seconds), by rows.
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that something may be proposed to.

    Attributes:
        acceptance: the chance that a level is accepted if the one before it was; below 1.
        limit: most nodes.
    """

    acceptance: float
    limit: int


@dataclass(frozen=True, slots=True)
class GoodputInputs:
    """What a choice depends on.

    Attributes:
        decoding: rows that decode anyway.
        candidates: who may get proposals.
        widths: nodes of each level of a proposal: ones for a chain.
        times: seconds of steps by their rows, as measured; seconds never decrease.
        draft_seconds: of a level, for all requests together.
        saved: seconds that a proposal may cost which is made only to be measured; None for no such
            proposal now.
    """

    decoding: int
    candidates: tuple[Candidate, ...]
    widths: tuple[int, ...]
    times: Points = ()
    draft_seconds: float = 0.0
    saved: float | None = None


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
    levels = _Levels.of(inputs)
    base = seconds_of(inputs.times, inputs.decoding)
    # Without any measurement every step takes as long: all that is allowed is proposed.
    alone = inputs.decoding / (base or 1.0)
    nothing = GoodputChoice((0,) * len(inputs.candidates))
    if not levels.rows.size:
        return nothing
    tokens = inputs.decoding + np.cumsum(levels.gains)
    seconds = _seconds(inputs.times, inputs.decoding + np.cumsum(levels.rows))
    seconds = seconds + np.maximum.accumulate(levels.depths) * inputs.draft_seconds
    goodput = tokens / (seconds if base > 0.0 else 1.0)
    best = int(goodput.argmax())
    extra = float(seconds[best]) - base
    wins = bool(goodput[best] > alone * _MARGIN)
    if wins or (inputs.saved is not None and extra <= inputs.saved):
        limits = levels.limits(best + 1, len(inputs.candidates))
        return GoodputChoice(limits, probe=not wins, extra_seconds=extra)
    return nothing


def seconds_of(times: Points, rows: int) -> float:
    """How long a step takes, by interpolation; what was never measured is thought to be fast.

    Below the first point time is proportional to rows, which is less than it can be; behind the
    last one it stands still. So what is not known is tried once, and known afterwards.
    """
    return float(_seconds(times, np.array([rows]))[0])


def _seconds(times: Points, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    known = np.array([(0.0, 0.0), *times])
    seconds: NDArray[np.float64] = np.interp(rows.astype(np.float64), known[:, 0], known[:, 1])
    return seconds


@dataclass(frozen=True, slots=True)
class _Levels:
    """Every level that may be given out, the one with the most tokens per row first.

    Attributes:
        gains: tokens that each yields on average.
        rows: that it costs.
        depths: levels of the proposal down to it.
        candidates: whose it is.
    """

    gains: NDArray[np.float64]
    rows: NDArray[np.int64]
    depths: NDArray[np.int64]
    candidates: NDArray[np.int64]

    @classmethod
    def of(cls, inputs: GoodputInputs) -> "_Levels":
        """All levels of all candidates."""
        widths = np.array(inputs.widths, dtype=np.int64)
        rates = np.array([candidate.acceptance for candidate in inputs.candidates])
        limits = np.array([candidate.limit for candidate in inputs.candidates], dtype=np.int64)
        depths = np.arange(1, len(widths) + 1)
        rows = np.clip(limits[:, None] - (np.cumsum(widths) - widths), 0, widths)
        gains = rates[:, None] ** depths * rows / widths
        # Never above that of the level before: none is given out before the one above it.
        density = np.minimum.accumulate(gains / np.maximum(rows, 1), axis=1)
        whose, level = np.nonzero(rows)
        order = np.lexsort((level, -density[whose, level]))
        whose, level = whose[order], level[order]
        return cls(gains[whose, level], rows[whose, level], depths[level], whose)

    def limits(self, count: int, candidates: int) -> tuple[int, ...]:
        """Nodes for each candidate if the first `count` levels are given out."""
        given = np.bincount(self.candidates[:count], self.rows[:count], minlength=candidates)
        return tuple(map(int, given))
