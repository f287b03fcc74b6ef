"""Timelines add up whatever the workers report."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from twinflow.cluster.gateway.timeline import Milestones, timeline
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


def test_without_a_worker_the_rest_is_generation() -> None:
    last = timeline(MILESTONES, (), ended=12.0).phases[-1]
    assert last.name == "generate"
    assert math.isclose(last.seconds, 1.4)


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
