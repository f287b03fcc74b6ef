"""Binary search over decisions whose cost never falls."""

from collections.abc import Callable


def largest(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to `high` for which something holds that holds for all smaller ones.

    Args:
        low: the answer if it holds for no larger number; not asked about.
        high: at least `low`.
        holds: asked about O(log(high - low)) numbers.
    """
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
