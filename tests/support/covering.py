"""Covering arrays: few combinations in which every two values of different factors meet.

Faults of mechanisms that are combined nearly always take one or two of them (Kuhn, Wallace and
Gallo, IEEE TSE 30(6), 2004). The array is built greedily and always the same.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

Combination = dict[str, object]


def covering_array(
    factors: Mapping[str, Sequence[object]], allowed: Callable[[Combination], bool]
) -> list[Combination]:
    """Combinations in which every pair of values occurs that occurs in an allowed one.

    Args:
        factors: values by name.
        allowed: whether a combination makes sense.
    """
    every = [
        found
        for values in itertools.product(*factors.values())
        if allowed(found := dict(zip(factors, values, strict=True)))
    ]
    numbers: dict[object, int] = {}
    pairs = [_pairs(found, numbers) for found in every]
    missing = (1 << len(numbers)) - 1
    chosen: list[Combination] = []
    while missing:
        best = max(range(len(every)), key=lambda index: (pairs[index] & missing).bit_count())
        chosen.append(every[best])
        missing &= ~pairs[best]
    return chosen


def _pairs(found: Combination, numbers: dict[object, int]) -> int:
    """The pairs of a combination, a bit for each."""
    bits = 0
    for pair in itertools.combinations(found.items(), 2):
        bits |= 1 << numbers.setdefault(repr(pair), len(numbers))
    return bits
