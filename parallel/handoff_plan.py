"""Which rank of one worker sends which parts of KV blocks to which rank of another.

Both workers cut a page into the same parts (see `kv_layout`), and each rank holds some of them. A
rank that is to receive needs each of its parts from one rank that has it; what it gets from one
sending rank is a *route*, with a link of its own. Parts travel whole, straight from the sender's
pages into the receiver's: nothing is packed.

    2 ranks → 4                 4 ranks → 2                 replicated → tpla over 2
    0: a b ──► 0: a             0: a ──► 0: a b             0: l0 l1 r ──► 0: l0 r
         └───► 1: b             1: b ────┘                  1: l0 l1 r ──► 1: l1 r
    1: c d ──► 2: c             2: c ──► 1: c d
         └───► 3: d             3: d ────┘

Where several ranks hold the same, receiving rank t of T begins to look at sending rank t S / T of
S, so that all of them are used alike. Whoever is to receive plans for itself: its routes depend on
no other receiving rank. Arithmetic only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from twinflow.protos.errors import HandoffError


@dataclass(frozen=True, slots=True)
class Route:
    """What one rank gets from another.

    Attributes:
        source: rank that sends.
        parts: names of the parts, in the order of the receiver's layout.
    """

    source: int
    parts: tuple[str, ...]


def plan_routes(
    target: int, num_targets: int, needed: Sequence[str], sources: Sequence[Sequence[str]]
) -> tuple[Route, ...]:
    """The routes of one receiving rank, by sending rank.

    Args:
        target: the receiving rank.
        num_targets: ranks of its worker.
        needed: names of the parts that it holds.
        sources: names of the parts that each sending rank holds.

    Returns:
        Routes that bring every needed part exactly once. Rank 0 always has one from rank 0.

    Raises:
        HandoffError: nobody holds a part.
    """
    count = len(sources)
    held = [frozenset(parts) for parts in sources]
    preferred = target * count // num_targets
    order = [(preferred + step) % count for step in range(count)]
    chosen: dict[int, list[str]] = {}
    for part in needed:
        source = next((rank for rank in order if part in held[rank]), None)
        if source is None:
            known = sorted(frozenset().union(*held))
            raise HandoffError(f"no rank of the sender holds the KV part {part!r}, only {known}")
        chosen.setdefault(source, []).append(part)
    return tuple(Route(source, tuple(chosen[source])) for source in sorted(chosen))
