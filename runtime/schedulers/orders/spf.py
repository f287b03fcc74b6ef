"""Shortest prefill first, with ageing (Nexus, algorithm 2, with the mends below).

The score of a prompt is

    tokens still to be computed - gamma * seconds since its arrival        the lowest goes first

where tokens that the prefix cache has are not to be computed, ties go to whoever came first, and
priorities come before scores. Whether a prompt is begun or waiting makes no difference.

The paper leaves the unit of gamma open. Here it is tokens per second, and it follows from the
objective: gamma = (longest prompt in the queue) / (TTFT objective). So a prompt of L tokens is
never overtaken by one of s tokens that came more than

    (L - s) / gamma <= TTFT objective

seconds after it, whatever the load: nobody waits for ever, and nobody waits for others that came
more than one objective later.
"""

from collections.abc import Sequence

from twinflow.runtime.request import Request, RequestStatus
from twinflow.runtime.schedulers.base import SchedulerState

# Priority, score and order number of a request.
_Entry = tuple[int, float, int, Request]

# Looking a prompt up in the prefix cache takes time in proportion to its length, in every step.
_LOOK_UPS = 128


class ShortestPrefillFirst:
    """See the module.

    Args:
        ttft_objective: seconds; bounds by how much later arrivals may overtake.
    """

    def __init__(self, ttft_objective: float) -> None:
        if ttft_objective <= 0:
            raise ValueError(f"a TTFT objective of {ttft_objective} s cannot be met")
        self._ttft_objective = ttft_objective

    def sort(self, prefilling: Sequence[Request], state: SchedulerState) -> list[Request]:
        """See `PrefillOrder.sort`."""
        requests = [*prefilling, *state.waiting]
        if len(requests) < 2:
            return requests
        tokens = [request.num_uncomputed for request in requests]
        entries = self._sort(requests, tokens)
        cached = [self._num_cached(request, state) for *_, request in entries[:_LOOK_UPS]]
        if any(cached):
            requests = [request for *_, request in entries]
            tokens = [request.num_uncomputed for request in requests]
            tokens[: len(cached)] = [t - c for t, c in zip(tokens, cached, strict=False)]
            entries = self._sort(requests, tokens)
        return [request for *_, request in entries]

    @staticmethod
    def _num_cached(request: Request, state: SchedulerState) -> int:
        waits = request.status is RequestStatus.WAITING
        return state.blocks.match(request).num_tokens if waits else 0

    def _sort(self, requests: list[Request], tokens: list[int]) -> list[_Entry]:
        """Sort by score; the clock is left out, which adds the same to every score."""
        gamma = max(tokens) / self._ttft_objective
        return sorted(
            # The order number is nobody else's, so that requests themselves are not compared.
            (request.priority, count + gamma * request.arrival, request.order, request)
            for request, count in zip(requests, tokens, strict=True)
        )
