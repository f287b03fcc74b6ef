"""What decides how long a step takes, and what can be asked about it.

A step is summed up by the layers it crosses: all rows of a plan that cross the same layers form
one segment. Schedulers, the partition of a device and simulations ask the same `StepTimes`; none
of them knows how it comes to its answer.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Protocol

import msgspec

from twinflow.runtime.step_plan import RowGroup, RowKind


class PhaseLoad(msgspec.Struct, frozen=True):
    """Rows of one phase.

    Attributes:
        rows: tokens that are computed.
        pairs: of a row and a token that it attends to, summed over the rows; the row's own token
            counts.
        context: tokens of KV that are read: of each sequence once, whatever its rows.
    """

    rows: int = 0
    pairs: int = 0
    context: int = 0

    def __add__(self, other: "PhaseLoad") -> "PhaseLoad":
        return PhaseLoad(
            self.rows + other.rows, self.pairs + other.pairs, self.context + other.context
        )

    @classmethod
    def of(cls, start: int, count: int) -> "PhaseLoad":
        """Tokens [start, start + count) of one sequence."""
        return cls(count, count * start + count * (count + 1) // 2, start + count)


class SegmentLoad(msgspec.Struct, frozen=True):
    """Consecutive layers that the same rows cross.

    Attributes:
        layers: how many.
        prefill: prompt rows.
        decode: rows of generated tokens.
    """

    layers: int
    prefill: PhaseLoad
    decode: PhaseLoad

    @property
    def rows(self) -> int:
        """All rows."""
        return self.prefill.rows + self.decode.rows


class StepLoad(msgspec.Struct, frozen=True):
    """A step, from the first layer to the last.

    Attributes:
        segments: in order of layers; layers that nothing crosses are left out.
        sampled: rows whose logits are computed.
    """

    segments: tuple[SegmentLoad, ...]
    sampled: int

    @classmethod
    def of(cls, groups: Iterable[RowGroup]) -> "StepLoad":
        """Sum up the row groups of a plan."""
        groups = tuple(groups)
        sampled = sum([group.sampled_rows for group in groups])
        borders = {border for group in groups for border in (group.layer_start, group.layer_end)}
        if len(borders) == 2:  # as in nearly all steps: all rows cross the same layers
            first, end = sorted(borders)
            return cls((SegmentLoad(end - first, *_phases(groups)),), sampled)
        segments = []
        for first, end in pairwise(sorted(borders)):
            crossing = [g for g in groups if g.layer_start <= first and end <= g.layer_end]
            if crossing:
                segments.append(SegmentLoad(end - first, *_phases(crossing)))
        return cls(tuple(segments), sampled)


class StepTimes(Protocol):
    """Predicts durations."""

    def seconds(self, load: StepLoad, share: float = 1.0) -> float:
        """How long a step takes.

        Args:
            load: what is computed; never decreasing in any of its numbers.
            share: of the device's processors that compute it, above 0 and at most 1.
        """
        ...


def _phases(groups: Iterable[RowGroup]) -> tuple[PhaseLoad, PhaseLoad]:
    """Prompt rows and rows of generated tokens."""
    # Numbers, not sums of `PhaseLoad.of`: simulations come by here millions of times.
    prefill, decode = [0, 0, 0], [0, 0, 0]
    for group in groups:
        sums = prefill if group.kind is RowKind.PREFILL else decode
        start, count = group.token_start, group.token_count
        sums[0] += count
        sums[1] += count * start + count * (count + 1) // 2
        sums[2] += start + count
    return PhaseLoad(*prefill), PhaseLoad(*decode)
