"""Bounds on what waits: in sequences, in tokens, in memory."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.dispatchers import create_spec

from twinflow.cluster.dispatch.admission import AdmissionLimits, AdmissionQueue
from twinflow.cluster.dispatch.backlog import Backlog
from twinflow.protos.errors import Overloaded


@pytest.mark.parametrize(
    ("limits", "bound"),
    [
        ({"max_requests": 2}, "2 requests"),
        ({"max_tokens": 29}, "29 prompt tokens"),
        ({"max_bytes": 3 * (4096 + 80) - 1}, "12527 bytes"),
    ],
)
def test_a_request_is_admitted_whole_or_not_at_all(limits: dict[str, Any], bound: str) -> None:
    queue = AdmissionQueue(AdmissionLimits(**limits, retry_after_s=3.0))
    first = create_spec(prompt=10)
    queue.admit([first])
    with pytest.raises(Overloaded, match=f"full \\({bound}\\); try again later") as refused:
        queue.admit([create_spec(prompt=10), create_spec(prompt=10)])
    assert refused.value.retry_after_s == 3.0
    assert (queue.num_requests, queue.num_tokens) == (1, 10)
    second = create_spec(prompt=10)
    queue.admit([second])
    for spec in (first, second, second):
        queue.leave(spec)
    assert (queue.num_requests, queue.num_tokens) == (0, 0)


@given(sizes=st.lists(st.integers(0, 50), max_size=20), data=st.data())
def test_a_backlog_counts_what_was_added_and_not_removed(
    sizes: list[int], data: st.DataObject
) -> None:
    backlog = Backlog()
    for number, size in enumerate(sizes):
        backlog.add(str(number), size)
    left = dict(enumerate(sizes))
    for number in data.draw(st.lists(st.integers(0, 25), max_size=30)):
        backlog.remove(str(number))
        left.pop(number, None)
        backlog.check_integrity()
        assert backlog.num_tokens == sum(left.values())
        assert backlog.request_ids == {str(number) for number in left}


def test_a_sequence_is_counted_once() -> None:
    backlog = Backlog()
    backlog.add("a", 1)
    with pytest.raises(ValueError, match="sequence a is counted already"):
        backlog.add("a", 2)
    assert backlog.num_tokens == 1


@pytest.mark.parametrize(
    ("limits", "bound"),
    [({"max_key_requests": 2}, "2 requests"), ({"max_key_tokens": 29}, "29 prompt tokens")],
)
def test_a_key_has_bounds_of_its_own(limits: dict[str, Any], bound: str) -> None:
    queue = AdmissionQueue(AdmissionLimits(**limits))
    own = [create_spec(prompt=10, api_key_id="a") for _ in range(3)]
    queue.admit(own[:2])
    with pytest.raises(Overloaded, match=f"Too much of this API key waits \\({bound}\\)"):
        queue.admit(own[2:])
    queue.admit([create_spec(prompt=10, api_key_id="b")])
    queue.leave(own[0])
    queue.admit(own[2:])
    assert queue.num_requests == 3


class TestWaits:
    """Nobody waits in vain."""

    def slow_queue(self, **limits: Any) -> tuple[AdmissionQueue, list[float]]:
        """A queue that has seen 100 prompt tokens a second, and its clock."""
        now = [0.0]
        queue = AdmissionQueue(AdmissionLimits(**limits), lambda: now[0])
        first, second = create_spec(prompt=50), create_spec(prompt=50)
        queue.admit([first])
        queue.admit([second])
        now[0] = 1.0
        queue.answered(second)
        queue.leave(first)
        return queue, now

    def test_who_would_wait_too_long_is_refused_and_told_for_how_long(self) -> None:
        queue, _ = self.slow_queue(longest_wait_s=1.0)
        queue.admit([create_spec(prompt=50)])
        with pytest.raises(Overloaded, match=r"later than it may \(1 s\)") as refused:
            queue.admit([create_spec(prompt=250)])
        assert refused.value.retry_after_s == pytest.approx(3.0 - 0.7)
        queue.admit([create_spec(prompt=20)])
        assert queue.num_requests == 2

    def test_who_is_alone_is_admitted_however_slow_it_was(self) -> None:
        queue, now = self.slow_queue(longest_wait_s=1.0)
        spec = create_spec(prompt=500)
        queue.admit([spec])
        with pytest.raises(Overloaded):
            queue.admit([create_spec(prompt=1)])
        now[0] += 0.1
        queue.answered(spec)
        queue.admit([create_spec(prompt=50)])
        queue.admit([create_spec(prompt=50)])

    def test_an_end_without_a_token_says_nothing(self) -> None:
        queue, now = self.slow_queue(longest_wait_s=1.0)
        pace, specs = queue.forecast.pace, [create_spec(prompt=10) for _ in range(3)]
        queue.admit(specs)
        now[0] += 100.0
        for spec in specs:
            queue.leave(spec)
            queue.answered(spec)
        assert queue.forecast.pace == pace
        assert queue.num_requests == 0

    @pytest.mark.parametrize("turns", [False, True])
    def test_with_turns_another_key_has_no_more_in_front_than_it_has_itself(
        self, turns: bool
    ) -> None:
        queue, _ = self.slow_queue(longest_wait_s=1.0, turns=turns)
        for _ in range(7):
            queue.admit([create_spec(prompt=10, api_key_id="greedy")])
        with pytest.raises(Overloaded):
            queue.admit([create_spec(prompt=10, api_key_id="greedy")])
        modest = create_spec(prompt=30, api_key_id="modest")
        if turns:
            queue.admit([modest])
        else:
            with pytest.raises(Overloaded):
                queue.admit([modest])
