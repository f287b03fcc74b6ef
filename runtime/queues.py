"""Where the requests of an engine are: waiting, running or parked, each exactly once.

Parked requests hold blocks but are not scheduled: their KV is being received, or they are done
and another worker still reads it. Order within a queue is by rank. No policy here.
"""

from bisect import insort
from collections.abc import Iterator

from twinflow.runtime.request import Request, RequestStatus


def _rank(request: Request) -> tuple[int, int]:
    return request.rank


class RequestQueues:
    """All live requests of an engine, by id and by state."""

    def __init__(self) -> None:
        self._requests: dict[str, Request] = {}
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    @property
    def num_parked(self) -> int:
        """Requests that hold blocks without being scheduled."""
        return len(self._requests) - len(self.waiting) - len(self.running)

    @property
    def receiving(self) -> list[Request]:
        """Requests whose KV is on its way."""
        return self._parked(RequestStatus.RECEIVING)

    @property
    def held(self) -> list[Request]:
        """Requests that are done and whose KV another worker still reads."""
        return self._parked(RequestStatus.HELD)

    def _parked(self, status: RequestStatus) -> list[Request]:
        if not self.num_parked:
            return []
        return [r for r in self._requests.values() if r.status is status]

    def get(self, request_id: str) -> Request | None:
        """The live request with this id."""
        return self._requests.get(request_id)

    def add(self, request: Request) -> None:
        """Take in a new request, at the end of its priority."""
        self._arrivals += 1
        request.order = self._arrivals
        self._requests[request.request_id] = request
        self.move(request, RequestStatus.WAITING)

    def move(self, request: Request, status: RequestStatus) -> None:
        """Put a request where its new status belongs."""
        for queue in (self.waiting, self.running):
            if request in queue:
                queue.remove(request)
        request.status = status
        if status is RequestStatus.WAITING:
            insort(self.waiting, request, key=_rank)
        elif status is RequestStatus.RUNNING:
            insort(self.running, request, key=_rank)
        elif status is RequestStatus.FINISHED:
            del self._requests[request.request_id]

    def check_integrity(self) -> None:
        """Every request is where its status says; raises AssertionError otherwise."""
        if any(r.status is RequestStatus.FINISHED for r in self._requests.values()):
            raise AssertionError("a finished request is still here")
        for queue, status in (
            (self.waiting, RequestStatus.WAITING),
            (self.running, RequestStatus.RUNNING),
        ):
            expected = [r for r in self._requests.values() if r.status is status]
            if sorted(expected, key=_rank) != queue:
                raise AssertionError(f"the {status.name.lower()} queue and the requests differ")
