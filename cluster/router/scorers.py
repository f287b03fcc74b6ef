"""Scorers: what it would cost to send a request to a worker, in tokens; less is better."""

from typing import Protocol

from twinflow.cluster.router.snapshot import RouteRequest, WorkerView


class Scorer(Protocol):
    """A cost of one worker for one request."""

    def cost(self, worker: WorkerView, request: RouteRequest) -> float:
        """Tokens, or tokens' worth."""
        ...


class QueueAhead:
    """Tokens that the worker computes before it gets to the request."""

    def cost(self, worker: WorkerView, request: RouteRequest) -> float:
        """See `Scorer.cost`."""
        return max(worker.queued_tokens, worker.assigned_tokens)


class UncachedPrompt:
    """Tokens of the prompt that the worker has to compute itself."""

    def cost(self, worker: WorkerView, request: RouteRequest) -> float:
        """See `Scorer.cost`."""
        return request.num_tokens - request.prefix_hits.get(worker.worker_id, 0)


class DecodeLoad:
    """Requests that share the worker's steps, each as `tokens_per_request` tokens."""

    def __init__(self, tokens_per_request: float = 64.0) -> None:
        self._weight = tokens_per_request

    def cost(self, worker: WorkerView, request: RouteRequest) -> float:
        """See `Scorer.cost`."""
        return self._weight * max(worker.num_requests, worker.assigned_requests)


class KVShortage:
    """Tokens by which the free KV room falls short of what the request may come to need."""

    def cost(self, worker: WorkerView, request: RouteRequest) -> float:
        """See `Scorer.cost`."""
        needed = request.num_tokens + request.max_new_tokens + worker.promised_tokens
        return max(0.0, needed - worker.free_blocks * worker.block_size)
