"""A seed means the same faults in the same order, whatever else is asked for."""

from hypothesis import given, settings
from hypothesis import strategies as st

from twinflow.cluster.chaos.faults import Action, Target, possible_cells
from twinflow.cluster.chaos.plan import Scope, plan_faults
from twinflow.workers.fault_points import Point

HARMLESS = (
    *(Action.BLIP, Action.SLOW),
    *(Action.CORRUPT, Action.CUT, Action.DELAY, Action.STALL),
)
seeds = st.integers(0, 2**32)


@settings(deadline=None)
@given(seeds)
def test_a_seed_does_everything_once(seed: int) -> None:
    planned = plan_faults(seed, Scope())
    assert planned == plan_faults(seed, Scope())
    cells = [(fault.target, fault.action, fault.point) for fault in planned]
    assert sorted(cells, key=str) == sorted(possible_cells(), key=str)


@settings(deadline=None)
@given(
    seeds,
    st.sets(st.sampled_from(Target)),
    st.sets(st.sampled_from(Action)),
    st.sets(st.sampled_from(Point)),
)
def test_a_scope_leaves_the_rest_as_it_is(
    seed: int, targets: set[Target], actions: set[Action], points: set[Point]
) -> None:
    """So that one fault of a seed that failed can be done again alone."""
    scope = Scope(targets=targets, actions=actions, points=points)
    wanted = [
        fault
        for fault in plan_faults(seed, Scope())
        if fault.target in targets and fault.action in actions and fault.point in points
    ]
    assert plan_faults(seed, scope) == wanted


def test_seeds_differ() -> None:
    assert plan_faults(0, Scope()) != plan_faults(1, Scope())


def test_only_what_is_watched_is_lost_and_replaced() -> None:
    for fault in plan_faults(0, Scope()):
        assert not (fault.is_fatal and fault.loses_a_worker), fault
        if fault.action in HARMLESS:
            assert not fault.is_fatal, fault
            assert not fault.loses_a_worker, fault
