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
        tokens = {r.request_id: r.num_uncomputed for r in requests}
        self._sort(requests, tokens)
        for request in requests[:_LOOK_UPS]:
            if request.status is RequestStatus.WAITING:
                tokens[request.request_id] -= state.blocks.match(request).num_tokens
        self._sort(requests, tokens)
        return requests

    def _sort(self, requests: list[Request], tokens: dict[str, int]) -> None:
        """Sort by score; the clock is left out, which adds the same to every score."""
        gamma = max(tokens.values()) / self._ttft_objective

        def key(request: Request) -> tuple[int, float, int]:
            score = tokens[request.request_id] + gamma * request.arrival
            return request.priority, score, request.order

        requests.sort(key=key)
