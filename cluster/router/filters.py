"""Filters: which workers could serve a request at all."""

from typing import Protocol

from twinflow.cluster.router.snapshot import RouteRequest, WorkerView
from twinflow.workers.role import Role


class Filter(Protocol):
    """A yes or no about one worker."""

    def keep(self, worker: WorkerView, request: RouteRequest) -> bool:
        """Whether the worker stays in the choice."""
        ...


class Available:
    """Connected, not draining, and not excluded by an earlier attempt."""

    def keep(self, worker: WorkerView, request: RouteRequest) -> bool:
        """See `Filter.keep`."""
        return worker.up and not worker.draining and worker.worker_id not in request.excluded


class HasRole:
    """Meant for one of these flows."""

    def __init__(self, *roles: Role) -> None:
        self._roles = roles

    def keep(self, worker: WorkerView, request: RouteRequest) -> bool:
        """See `Filter.keep`."""
        return worker.role in self._roles


class HasRoom:
    """Enough free KV blocks for the request and for those that were promised room before it."""

    def keep(self, worker: WorkerView, request: RouteRequest) -> bool:
        """See `Filter.keep`."""
        tokens = request.num_tokens + worker.promised_tokens
        return -(-tokens // worker.block_size) <= worker.free_blocks
