"""Timelines add up whatever the workers report."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from twinflow.cluster.gateway.timeline import Milestones, prolonged, timeline
from twinflow.runtime.outputs import PhaseTime

MILESTONES = Milestones(received=10.0, validated=10.1, tokenized=10.3, admitted=10.6)


def test_phases_follow_one_another() -> None:
    worker = [PhaseTime("queue", 0.2), PhaseTime("prefill", 0.5)]
    found = timeline(MILESTONES, worker, ended=11.6)
    names = [phase.name for phase in found.phases]
    assert names == ["validate", "tokenize", "admit", "queue", "prefill", "wire"]
    expected = [0.1, 0.2, 0.3, 0.2, 0.5, 0.3]
    for phase, seconds in zip(found.phases, expected, strict=True):
        assert math.isclose(phase.seconds, seconds, abs_tol=1e-9)


def test_a_worker_may_not_have_had_more_time_than_there_was() -> None:
    found = timeline(MILESTONES, [PhaseTime("queue", 3.0), PhaseTime("prefill", 1.0)], ended=11.6)
    queue, prefill, wire = (phase.seconds for phase in found.phases[3:])
    assert math.isclose(queue, 0.75, abs_tol=1e-9)
    assert math.isclose(prefill, 0.25, abs_tol=1e-9)
    assert wire == 0.0


def test_what_was_told_last_goes_on() -> None:
    told = (PhaseTime("prefill", 0.5), PhaseTime("transfer", 0.25))
    assert prolonged(told, 2.0) == (PhaseTime("prefill", 0.5), PhaseTime("transfer", 2.25))
    assert prolonged((), 2.0) == ()


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1e4), max_size=6),
    st.lists(st.floats(0, 1e3), min_size=4, max_size=4),
)
def test_the_sum_is_the_total(phases: list[float], steps: list[float]) -> None:
    a, b, c, d = steps
    found = timeline(
        Milestones(5.0, 5.0 + a, 5.0 + a + b, 5.0 + a + b + c),
        [PhaseTime(str(number), seconds) for number, seconds in enumerate(phases)],
        ended=5.0 + a + b + c + d,
    )
    assert all(phase.seconds >= 0 for phase in found.phases)
    spent = sum(phase.seconds for phase in found.phases)
    assert math.isclose(spent, found.total_seconds, rel_tol=1e-6, abs_tol=1e-6)
