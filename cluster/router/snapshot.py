"""What a routing decision looks at: all workers at one moment.

Values only. Whoever keeps the connections makes the snapshot; everything below it is a pure
function of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from twinflow.workers.role import Role


@dataclass(frozen=True, slots=True)
class RankView:
    """One rank of a worker.

    Attributes:
        address: host and port of the server that hands its KV over.
        parts: names of the parts of KV blocks that it holds.
    """

    address: str
    parts: tuple[str, ...]


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """One worker.

    Attributes:
        worker_id: unique in the deployment.
        epoch: which life of the worker.
        address: host and port of its gRPC server.
        ranks: its ranks, in order; nothing here decides a route.
        role: which flow it is meant for.
        up: the session with it is open.
        draining: it takes no new requests.
        block_size: token slots of a KV block.
        free_blocks: blocks it could allocate when it last reported.
        num_requests: requests it had when it last reported, in any state.
        queued_tokens: tokens it had still to compute when it last reported.
        assigned_requests: requests that this gateway has sent it and that are not over.
        assigned_tokens: prompt tokens that this gateway has sent it to compute and that have
            brought no token yet.
        promised_tokens: tokens of the requests that this gateway has sent it to decode and that
            have brought no token yet; it may still have to find room for them.

    What a worker reports may be a step old, and misses what is on its way to it. What a gateway
    has sent is exact, and misses what other gateways have sent. Scorers take the larger of the
    two: the sum would count most requests twice.
    """

    worker_id: str
    epoch: int = 0
    address: str = ""
    ranks: tuple[RankView, ...] = ()
    role: Role = "mixed"
    up: bool = True
    draining: bool = False
    block_size: int = 16
    free_blocks: int = 0
    num_requests: int = 0
    queued_tokens: int = 0
    assigned_requests: int = 0
    assigned_tokens: int = 0
    promised_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """What routing needs to know of a request.

    Attributes:
        num_tokens: tokens whose KV is needed before it can decode.
        max_new_tokens: tokens it may generate.
        prefix_hits: tokens of its prefix that a worker probably has cached, by worker id.
        excluded: workers that it must not be sent to again.
    """

    num_tokens: int
    max_new_tokens: int = 0
    prefix_hits: dict[str, int] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes.

    Attributes:
        decode: the worker that it is submitted to.
        prefill: the worker that computes its prompt; None if `decode` does.
    """

    decode: WorkerView
    prefill: WorkerView | None = None


Workers = Sequence[WorkerView]
