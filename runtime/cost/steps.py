"""Which steps are run to learn what steps cost, and which to check what was learnt.

Sizes only; running them is `twinflow.runtime.cost.measure`'s.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Steps of up to so many rows are measured one by one: a line through a few of them would miss the
# stairs that kernels make by computing rows in tiles.
STAIRS = 12


@dataclass(frozen=True, slots=True)
class Steps:
    """A batch, and how it is computed.

    Attributes:
        rows: of the prompt that is computed; 0 for none.
        start: tokens of the prompt that were computed before.
        batch: sequences that decode.
        context: tokens of each of them.
        layered: the prompt crosses half of the layers in one step and the rest in a second one,
            and each step is a measurement.
    """

    rows: int = 0
    start: int = 0
    batch: int = 0
    context: int = 0
    layered: bool = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an engine can do.

    Attributes:
        rows: of a step.
        batch: sequences at the same time.
        context: tokens of a sequence.
        kv_tokens: of all sequences together.
    """

    rows: int
    batch: int
    context: int
    kv_tokens: int

    def allow(self, steps: Steps) -> bool:
        """Whether a batch can be computed, twenty times in a row."""
        room = 20
        prompt, decode = steps.start + steps.rows, steps.context + room
        return (
            steps.rows + steps.batch <= self.rows
            and steps.batch + (steps.rows > 0) <= self.batch
            and max(prompt + 1, decode) <= self.context
            and prompt + steps.batch * decode <= self.kv_tokens * 3 // 4
        )


def fitting_steps(bounds: Bounds) -> list[Steps]:
    """Steps of all kinds and sizes, small ones first."""
    return [steps for steps in _fitting(bounds) if bounds.allow(steps)]


def checking_steps(bounds: Bounds) -> list[Steps]:
    """Others, in between; none of them is among those that are fitted to.

    Up to `STAIRS` rows that decode only the contexts are others: between stairs is nothing.
    """
    return [steps for steps in _checking(bounds) if bounds.allow(steps)]


def fitting_pairs(bounds: Bounds, chunk: int) -> list[Steps]:
    """Batches of which the prompt is computed on one lane while the rest decodes on the other.

    Args:
        bounds: of the engine.
        chunk: rows of the longest prompt, at least 16; takes several times as long as decoding.
    """
    long, most = bounds.context // 2, chunk // 16
    short = chunk // 4
    return _pairs(
        bounds, ((short, 1, 64), (short, most, long), (chunk, 1, long), (chunk, most, 64))
    )


def checking_pairs(bounds: Bounds, chunk: int) -> list[Steps]:
    """Others, in between; arguments as of `fitting_pairs`."""
    third, most = bounds.context // 3, chunk // 32
    return _pairs(bounds, ((chunk // 2, max(1, most), third), (3 * chunk // 4, 1, third // 2)))


def _pairs(bounds: Bounds, sizes: Iterable[tuple[int, int, int]]) -> list[Steps]:
    found = [Steps(rows=rows, batch=batch, context=context) for rows, batch, context in sizes]
    return [steps for steps in found if steps.context > 1 and bounds.allow(steps)]


def _powers(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length()) if 1 << power <= most]


def _fitting(bounds: Bounds) -> Iterator[Steps]:
    sizes, long = _powers(bounds.rows - 1), bounds.context // 2
    yield from (Steps(rows=rows) for rows in sizes)
    yield from (Steps(rows=rows, start=long) for rows in sizes[::2])
    batches = _powers(min(bounds.batch, bounds.rows))
    for batch in (*range(1, STAIRS + 1), *(batch for batch in batches if batch > STAIRS)):
        yield from (Steps(batch=batch, context=length) for length in (16, long // 4, long))
    for batch in (1, 4, 16):
        yield from (Steps(rows=rows, batch=batch, context=64) for rows in sizes[3::2])
    yield from (Steps(rows=rows, batch=4, context=64, layered=True) for rows in sizes[4::2])


def _checking(bounds: Bounds) -> Iterator[Steps]:
    # Three quarters of a power of two lie in the middle between two of them.
    sizes, long = [3 * size // 4 for size in _powers(bounds.rows - 1)[2:]], bounds.context // 3
    yield from (Steps(rows=rows) for rows in sizes)
    yield from (Steps(rows=rows, start=long // 2) for rows in sizes[1::2])
    for batch in (1, 2, 3, 5, 6, 7, 8, 11, 24, 48):
        yield from (Steps(batch=batch, context=length) for length in (long // 8, long))
    for batch in (2, 8):
        yield from (Steps(rows=rows, batch=batch, context=100) for rows in sizes[2::2])
    yield from (Steps(rows=rows, batch=2, context=100, layered=True) for rows in sizes[3::2])
