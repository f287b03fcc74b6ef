"""Which faults a seed means. Pure: the same seed is the same list, in the same order."""

import random
from collections.abc import Collection
from dataclasses import dataclass

from twinflow.cluster.chaos.faults import Action, Fault, Target, possible_cells
from twinflow.workers.fault_points import Point

# The moment comes several times in a load; which time is hit is drawn.
_MOST_SKIPPED = {
    Point.QUEUED: 3,
    Point.PREFILL: 6,
    Point.HAND_OFF: 8,
    Point.DECODE: 60,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which part of the matrix is wanted.

    Attributes:
        targets: who may be hit.
        actions: what may be done.
        points: when.
        pool: workers of a pool to choose from.
    """

    targets: Collection[Target] = tuple(Target)
    actions: Collection[Action] = tuple(Action)
    points: Collection[Point] = tuple(Point)
    pool: int = 2


def plan_faults(seed: int, scope: Scope) -> list[Fault]:
    """One fault for every cell of the scope, in an order of the seed's."""
    rng = random.Random(seed)
    faults = [
        Fault(
            target=target,
            action=action,
            point=point,
            victim=rng.randrange(scope.pool),
            skip=rng.randint(0, _MOST_SKIPPED.get(point, 0)),
            seed=rng.getrandbits(32),
            migrate=rng.random() < 0.5,
        )
        for target, action, point in possible_cells()
    ]
    rng.shuffle(faults)
    # Drawn for all cells, so that a fault is the same whatever else is wanted.
    return [
        fault
        for fault in faults
        if fault.target in scope.targets
        and fault.action in scope.actions
        and fault.point in scope.points
    ]
