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
