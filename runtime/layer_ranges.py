"""Rows of one step that cross different layers.

    layers         0 ......... a ......... b ......... L
    decode rows    #####################################
    prompt rows                #############

Ranges are cut where one of them begins or ends: the same row groups cross all layers between two
cuts. Rows that stop short of the last layer leave their hidden states, the frontier, to the step
that takes them on. Nothing here computes anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerSegment:
    """Consecutive layers that the same row groups cross.

    Attributes:
        first: first layer.
        end: one behind the last layer.
        groups: indices of the row groups, ascending.
    """

    first: int
    end: int
    groups: tuple[int, ...]


def layer_segments(ranges: Sequence[tuple[int, int]]) -> list[LayerSegment]:
    """Cut the layers that row groups cross, from the first to the last.

    Args:
        ranges: (first layer, one behind the last) of each row group.
    """
    cuts = sorted({cut for layers in ranges for cut in layers})
    segments = []
    for first, end in pairwise(cuts):
        crossing = tuple(i for i, (start, stop) in enumerate(ranges) if start <= first < stop)
        if crossing:
            segments.append(LayerSegment(first, end, crossing))
    return segments


@dataclass(frozen=True, slots=True)
class FrontierPlace:
    """Which rows of a sequence wait, and where.

    Attributes:
        start: position of the first row.
        count: rows.
        layer: the layer that they cross next.
    """

    start: int
    count: int
    layer: int


class Frontier:
    """Hidden states of rows that have crossed some of the layers, by the names of sequences."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[FrontierPlace, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, sequence: str, place: FrontierPlace, hidden: Tensor) -> None:
        """Keep the hidden states of rows.

        Args:
            sequence: whose rows; a name that is not empty.
            place: which rows, and the layer that they cross next.
            hidden: [rows, hidden size]; copied.

        Raises:
            ValueError: the sequence has no name, or rows that wait already.
        """
        if not sequence or sequence in self._waiting:
            raise ValueError(f"the hidden states of sequence {sequence!r} cannot be kept twice")
        self._waiting[sequence] = (place, hidden.clone())

    def take(self, sequence: str, place: FrontierPlace) -> Tensor:
        """Hand out the hidden states of rows; they are not kept any longer.

        Raises:
            ValueError: other rows wait, or the same before another layer, or none.
        """
        found, hidden = self._waiting.pop(sequence, (None, None))
        if found != place or hidden is None:
            raise ValueError(f"sequence {sequence!r} is to go on at {place}, and waits at {found}")
        return hidden

    def forget(self, sequence: str) -> bool:
        """Drop what waits of a sequence; returns whether there was anything."""
        return self._waiting.pop(sequence, None) is not None
