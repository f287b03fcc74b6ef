"""The checker finds every kind of lie, and none where there is none."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.chaos_histories import (
    LIES,
    LIES_OF_LINKS,
    OVER,
    STRUCK,
    Lie,
    case_of,
    corrupting,
    honest_history,
    killing,
)

from twinflow.cluster.chaos.checker import Bounds, Kind, check
from twinflow.cluster.chaos.faults import Action, Fault, Target
from twinflow.cluster.chaos.history import End, EndKind, HealthAnswer, RequestRecord, Span
from twinflow.workers.fault_points import Point

BROKEN = [(killing(), *lie) for lie in LIES] + [(corrupting(), *lie) for lie in LIES_OF_LINKS]


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([killing(), corrupting()]))
def test_nothing_is_found_in_an_honest_history(seed: int, fault: Fault) -> None:
    rng = random.Random(seed)
    case = case_of(fault, rng)
    assert check(honest_history(case, rng), case) == []


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(BROKEN))
def test_every_lie_is_found(seed: int, broken: tuple[Fault, Kind, Lie]) -> None:
    fault, kind, lie = broken
    rng = random.Random(seed)
    case = case_of(fault, rng)
    history = lie(honest_history(case, rng), rng)
    assert kind in {violation.kind for violation in check(history, case)}


def test_every_kind_of_violation_is_lied_about() -> None:
    """Growth is judged elsewhere."""
    assert {kind for _, kind, _ in BROKEN} == set(Kind) - {Kind.GROWTH}


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(BROKEN))
def test_two_lies_are_both_found(seed: int, broken: tuple[Fault, Kind, Lie]) -> None:
    """No lie hides another one."""
    fault, kind, lie = broken
    rng = random.Random(seed)
    case = case_of(fault, rng)
    history = lie(honest_history(case, rng), rng)
    history.left = ["gateway-0 (1)"]
    found = {violation.kind for violation in check(history, case)}
    assert {kind, Kind.LEFT_BEHIND} <= found


def test_a_deployment_that_ends_may_break_connections_and_nothing_else() -> None:
    rng = random.Random(0)
    fault = Fault(target=Target.GATEWAY, action=Action.KILL, point=Point.DECODE)
    case = case_of(fault, rng)
    history = honest_history(case, rng)
    history.absent = [Span(STRUCK)]
    history.health = [HealthAnswer("/health", STRUCK + 1, STRUCK + 1.1, 0)]
    cut = RequestRecord("cut", 0, STRUCK, tokens=[case.expected[0][0]])
    cut.ends = [End(OVER, EndKind.BROKEN, "", 1)]
    history.requests = [cut]
    history.counters = None
    assert check(history, case) == []
    cut.ends = [End(OVER, EndKind.SILENT, "", 1)]
    assert [violation.kind for violation in check(history, case)] == [Kind.SILENT_END]


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_bounds_scale(factor: float) -> None:
    scaled = Bounds().times(factor)
    assert scaled.recovery_s == Bounds().recovery_s * factor
    assert scaled.silent_notice_s == Bounds().silent_notice_s * factor
