"""Every request in exactly one place, in the order of its rank."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support.engines import create_request

from twinflow.runtime.queues import RequestQueues
from twinflow.runtime.request import Request, RequestStatus


class QueuesMachine(RuleBasedStateMachine):
    """Requests arrive and change their status at random."""

    @initialize()
    def start(self) -> None:
        self.queues = RequestQueues()
        self.live: dict[str, Request] = {}

    @rule(priority=st.integers(-1, 1))
    def add(self, priority: int) -> None:
        request = create_request(priority=priority)
        self.queues.add(request)
        assert request.status is RequestStatus.WAITING
        self.live[request.request_id] = request

    @precondition(lambda self: self.live)
    @rule(data=st.data(), status=st.sampled_from(RequestStatus))
    def move(self, data: st.DataObject, status: RequestStatus) -> None:
        request = self.live[data.draw(st.sampled_from(sorted(self.live)))]
        self.queues.move(request, status)
        assert request.status is status
        if status is RequestStatus.FINISHED:
            del self.live[request.request_id]
            assert self.queues.get(request.request_id) is None

    @invariant()
    def every_request_is_where_its_status_says(self) -> None:
        self.queues.check_integrity()
        assert {request.request_id for request in self.queues} == set(self.live)
        assert len(self.queues) == len(self.live)
        parked = (RequestStatus.RECEIVING, RequestStatus.HELD)
        assert self.queues.num_parked == sum(r.status in parked for r in self.live.values())
        for queue in (self.queues.waiting, self.queues.running):
            assert [r.rank for r in queue] == sorted(r.rank for r in queue)


TestQueuesMachine = QueuesMachine.TestCase
TestQueuesMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_a_request_that_comes_back_keeps_its_place() -> None:
    queues = RequestQueues()
    first, second = create_request(), create_request()
    for request in (first, second):
        queues.add(request)
    queues.move(first, RequestStatus.RUNNING)
    queues.move(first, RequestStatus.WAITING)
    assert queues.waiting == [first, second]


class TestIntegrity:
    """The recount sees what is wrong."""

    def test_a_status_changed_behind_its_back(self) -> None:
        queues = RequestQueues()
        request = create_request()
        queues.add(request)
        request.status = RequestStatus.RUNNING
        with pytest.raises(AssertionError, match="the waiting queue and the requests differ"):
            queues.check_integrity()

    def test_a_finished_request_that_stays(self) -> None:
        queues = RequestQueues()
        request = create_request()
        queues.add(request)
        queues.move(request, RequestStatus.HELD)
        request.status = RequestStatus.FINISHED
        with pytest.raises(AssertionError, match="finished request is still here"):
            queues.check_integrity()
