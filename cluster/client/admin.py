"""The operator's client: pools, workers, events and requests of a running deployment.

    with twinflow.Admin("localhost:50051", token="...") as admin:
        admin.pools.scale("decode", 2)
        admin.workers.flip("prefill-1", role="decode")
        for event in admin.watch():
            print(event.message)

A change says what shall be. It is accepted or refused at once, and the method then waits until
everything is as wanted, unless told not to. Every change carries an id of its own, so that one that
is sent again, because its answer was lost, is made once.
"""

import uuid
from collections.abc import Generator
from contextlib import closing
from typing import Any, Literal, TypeAlias

from google.protobuf.message import Message

from twinflow.cluster.client.blocking import BlockingCalls, BlockingClient
from twinflow.cluster.client.cluster_view import (
    DRAINS,
    ROLES,
    Cluster,
    Event,
    Explanation,
    WorkerInfo,
    cluster_from_pb,
    event_from_pb,
    explanation_from_pb,
)
from twinflow.cluster.client.session import Ask, Rpc, Session, Tls, make_rpc
from twinflow.protos.errors import DeadlineExceeded, InvalidRequest, Unavailable
from twinflow.protos.twinflow.v1 import admin_pb2 as pb

PoolName: TypeAlias = Literal["prefill", "decode", "mixed"]
DrainName: TypeAlias = Literal["finish", "migrate"]

_SERVICE = pb.DESCRIPTOR.services_by_name["Admin"].full_name
_GET = make_rpc(f"/{_SERVICE}/GetCluster", pb.GetClusterRequest, pb.GetClusterResponse)
_SCALE = make_rpc(f"/{_SERVICE}/ScalePool", pb.ScalePoolRequest, pb.ScalePoolResponse)
_AUTOSCALE = make_rpc(
    f"/{_SERVICE}/AutoscalePool", pb.AutoscalePoolRequest, pb.AutoscalePoolResponse
)
_FLIP = make_rpc(f"/{_SERVICE}/FlipWorker", pb.FlipWorkerRequest, pb.FlipWorkerResponse)
_DRAIN = make_rpc(f"/{_SERVICE}/DrainWorker", pb.DrainWorkerRequest, pb.DrainWorkerResponse)
_RESTART = make_rpc(
    f"/{_SERVICE}/RestartWorkers", pb.RestartWorkersRequest, pb.RestartWorkersResponse
)
_WATCH = make_rpc(f"/{_SERVICE}/Watch", pb.WatchRequest, pb.WatchResponse)
_EXPLAIN = make_rpc(f"/{_SERVICE}/Explain", pb.ExplainRequest, pb.ExplainResponse)
# A call other than `watch`; the server answers changes within a second or so.
_CALL_S = 20.0
# One stretch of `watch`, after which it goes on in another call.
_WATCH_S = 300.0


class Admin(BlockingClient):
    """A connection to a gateway, for operators.

    Args:
        target: `host:port` of the gateway's gRPC door.
        token: an admin token of the deployment.
        timeout_s: how long a change may take until everything is as wanted.
        tls: how to trust the gateway; needed if it is on another machine.
        insecure: talk to another machine in clear text.

    Attributes:
        pools: sizes of pools.
        workers: single workers.
        requests: what became of requests.

    Raises:
        ConfigError: the arguments do not go together.

    Every method raises the errors of `twinflow.protos.errors`: `InvalidRequest` if a change cannot
    be made, `Unauthenticated` without a valid token, `Unavailable` if the gateway cannot be reached
    and `DeadlineExceeded` if a change takes too long, which goes on nevertheless.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str,
        timeout_s: float = 600.0,
        tls: Tls | None = None,
        insecure: bool = False,
    ) -> None:
        super().__init__(
            Session(target=target, api_key=token, timeout_s=timeout_s, tls=tls, insecure=insecure)
        )
        self._changes = Changes(self._calls, timeout_s)
        self.pools = Pools(self._changes)
        self.workers = Workers(self._changes)
        self.requests = Requests(self._calls)

    def cluster(self) -> Cluster:
        """Pools and workers as they are, and what is wanted."""
        return self._changes.cluster()

    def restart(self, *, drain: DrainName = "finish", wait: bool = True) -> Cluster:
        """Replace every worker by a new one, one after the other.

        Args:
            drain: what becomes of the requests of each old one.
            wait: return when that is done, instead of when it is accepted.
        """
        request = pb.RestartWorkersRequest(request_id=_new_id(), drain=drain_to_pb(drain))
        return self._changes.make(_RESTART, request, wait)

    def watch(self, after: int | None = None) -> Generator[Event, None, None]:
        """What happens, as it happens, for ever; closing the generator ends it.

        Args:
            after: number of the last event that is known; None begins with what happens next.
        """
        return self._changes.watch(after)


class Pools:
    """Sizes of pools; made by `Admin`."""

    def __init__(self, changes: "Changes") -> None:
        self._changes = changes

    def scale(
        self, pool: PoolName, size: int, *, drain: DrainName = "finish", wait: bool = True
    ) -> Cluster:
        """Give a pool another size.

        Args:
            pool: `prefill`, `decode` or `mixed`.
            size: workers that it shall have.
            drain: what becomes of the requests of a worker that it lets go: `finish` where they
                are, or `migrate` to others, behind their last token.
            wait: return when that is done, instead of when it is accepted.
        """
        if not 0 <= size < 1 << 31:
            raise InvalidRequest("A pool cannot have this size.", "size")
        request = pb.ScalePoolRequest(
            request_id=_new_id(), pool=role_to_pb(pool), size=size, drain=drain_to_pb(drain)
        )
        return self._changes.make(_SCALE, request, wait)

    def autoscale(
        self,
        pool: PoolName,
        *,
        min: int,
        max: int,
        ttft_ms: float | None = None,
        tpot_ms: float | None = None,
        drain: DrainName = "finish",
    ) -> Cluster:
        """Let a pool size itself, so that nine of ten requests keep to an objective.

        Args:
            pool: `prefill`, `decode` or `mixed`.
            min: workers that it always has; at least 1.
            max: workers that it never has more of.
            ttft_ms: what a first token may take; for prefill and mixed pools.
            tpot_ms: what a further token may take; for decode and mixed pools.
            drain: what becomes of the requests of a worker that it lets go.
        """
        if not 0 <= min < 1 << 31 or not 0 <= max < 1 << 31:
            raise InvalidRequest("A pool cannot have these sizes.", "min")
        policy = pb.Autoscaling(min=min, max=max, ttft_ms=ttft_ms, tpot_ms=tpot_ms)
        request = pb.AutoscalePoolRequest(
            request_id=_new_id(),
            pool=role_to_pb(pool),
            autoscaling=policy,
            drain=drain_to_pb(drain),
        )
        return self._changes.make(_AUTOSCALE, request, wait=False)

    def autoscale_off(self, pool: PoolName) -> Cluster:
        """Let a pool keep the size that it has now, until it is scaled."""
        request = pb.AutoscalePoolRequest(request_id=_new_id(), pool=role_to_pb(pool))
        return self._changes.make(_AUTOSCALE, request, wait=False)


class Workers:
    """Single workers; made by `Admin`."""

    def __init__(self, changes: "Changes") -> None:
        self._changes = changes

    def list(self) -> tuple[WorkerInfo, ...]:
        """All workers, by name."""
        return self._changes.cluster().workers

    def flip(self, worker_id: str, *, role: PoolName, wait: bool = True) -> Cluster:
        """Move a worker to another pool; its process, its model and its caches stay.

        Requests that it has go on; the next ones are those of its new role.
        """
        request = pb.FlipWorkerRequest(
            request_id=_new_id(), worker_id=worker_id, role=role_to_pb(role)
        )
        return self._changes.make(_FLIP, request, wait)

    def drain(
        self,
        worker_id: str,
        *,
        drain: DrainName = "finish",
        replace: bool = False,
        wait: bool = True,
    ) -> Cluster:
        """Take a worker out of service and end it.

        Args:
            worker_id: which one.
            drain: what becomes of its requests.
            replace: start another one in its place first; otherwise its pool gets smaller.
            wait: return when that is done, instead of when it is accepted.
        """
        request = pb.DrainWorkerRequest(
            request_id=_new_id(), worker_id=worker_id, drain=drain_to_pb(drain), replace=replace
        )
        return self._changes.make(_DRAIN, request, wait)


class Requests:
    """What became of requests; made by `Admin`."""

    def __init__(self, calls: BlockingCalls) -> None:
        self._calls = calls

    def explain(self, request_id: str) -> Explanation:
        """Where a request went, how long it was there, and why it left.

        Args:
            request_id: the `id` of its answer, with or without what it begins with.
        """
        response = self._calls.unary(
            Ask(_EXPLAIN, pb.ExplainRequest(request_id=request_id), _CALL_S)
        )
        return explanation_from_pb(response)


class Changes:
    """Makes changes and follows them; what `Admin` and its parts share."""

    def __init__(self, calls: BlockingCalls, timeout_s: float) -> None:
        self._calls = calls
        self._timeout_s = timeout_s

    def cluster(self) -> Cluster:
        """Pools and workers as they are."""
        response = self._calls.unary(Ask(_GET, pb.GetClusterRequest(), _CALL_S))
        return cluster_from_pb(response.cluster)

    def make(self, rpc: Rpc[Any, Any], request: Message, wait: bool) -> Cluster:
        """Ask for a change, and wait for it if wanted."""
        accepted = cluster_from_pb(self._calls.unary(Ask(rpc, request, _CALL_S)).cluster)
        return self._settle(accepted) if wait else accepted

    def watch(self, after: int | None, end_s: float | None = None) -> Generator[Event, None, None]:
        """Events behind a number; for ever, or for about so many seconds."""
        last = self.cluster().last_event if after is None else after
        while True:
            ask = Ask(_WATCH, pb.WatchRequest(after=last), end_s or _WATCH_S)
            try:
                with closing(self._calls.stream(ask)) as responses:
                    for response in responses:
                        last = response.event.number
                        yield event_from_pb(response.event)
            except DeadlineExceeded:
                if end_s is not None:
                    return

    def _settle(self, accepted: Cluster) -> Cluster:
        """Wait until everything is as wanted.

        Raises:
            Unavailable: it will not be, and why.
            DeadlineExceeded: it is not yet.
        """
        seen = self.cluster()
        events = self.watch(seen.last_event, self._timeout_s)
        with closing(events):
            while not seen.is_settled_for(accepted.version):
                event = next(events, None)
                if event is None:
                    raise DeadlineExceeded(
                        f"The change was accepted, and is not done after {self._timeout_s:g} s: "
                        f"{seen.unfinished()}."
                    )
                if event.kind == "gave_up":
                    raise Unavailable(
                        f"The change was accepted, and cannot be made: {event.message}"
                    )
                seen = self.cluster()
        return seen


def role_to_pb(name: str) -> Any:
    """A role as messages have it.

    Raises:
        InvalidRequest: there is none of this name.
    """
    return _named(name, ROLES, "A role or pool is")


def drain_to_pb(name: str) -> Any:
    """A way to drain as messages have it.

    Raises:
        InvalidRequest: there is none of this name.
    """
    return _named(name, DRAINS, "drain is")


def _named(name: str, values: dict[str, Any], what: str) -> Any:
    if name not in values:
        raise InvalidRequest(f"{what} {' or '.join(values)}, not {name!r}.")
    return values[name]


def _new_id() -> str:
    return str(uuid.uuid4())
