"""A gRPC door for operators, with a real controller behind it and workers that need no process.

Admin ─ gRPC ─► door ─► desk ◄─ control service ◄─ gRPC ─ controller ─► fake fleet
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.support.cluster_model import serving
from tests.support.fake_backend import FakeBackend
from tests.support.fake_fleet import FakeFleet
from tests.support.grpc_doors import pipeline_of

from twinflow.cluster.controller.chronicle import Chronicle
from twinflow.cluster.controller.contacts import ContactLimits
from twinflow.cluster.controller.controller import Controller, ControllerConfig
from twinflow.cluster.controller.fleet import Sighting
from twinflow.cluster.controller.gateway_link import GrpcGatewayLink
from twinflow.cluster.dispatch.history import History
from twinflow.cluster.dispatch.roster import Duty
from twinflow.cluster.dispatch.worker_client import WorkerClient
from twinflow.cluster.gateway.admin_desk import AdminDesk
from twinflow.cluster.gateway.auth import Authenticator
from twinflow.cluster.gateway.control import ControlService
from twinflow.cluster.gateway.grpc_door import GrpcConfig, create_grpc_server
from twinflow.cluster.gateway.grpc_door.admin import AdminOffice
from twinflow.cluster.latency_counts import LatencyCounts
from twinflow.protos.twinflow.internal.v1.gateway_pb2_grpc import add_GatewayServicer_to_server
from twinflow.workers.rpc import create_server, listen_on

ADMIN_TOKEN = "token-of-the-operators"
# Pauses between attempts to start a worker are shorter by this.
_HASTE = 50.0
_SECRET = "secret-of-the-deployment"


@dataclass
class Follower:
    """Keeps the table that it is told."""

    duties: Sequence[Duty] = ()
    missing: tuple[str, ...] = ()
    clients: Mapping[str, WorkerClient] = field(default_factory=dict)

    async def follow(self, duties: Sequence[Duty], missing: tuple[str, ...]) -> None:
        self.duties, self.missing = duties, missing


@dataclass
class FakeLatencies:
    """Nobody has waited for anything yet."""

    first_tokens: LatencyCounts = field(default_factory=LatencyCounts)
    gaps: LatencyCounts = field(default_factory=LatencyCounts)


@dataclass
class AdminDoor:
    """What a test sees of it all."""

    target: str
    fleet: FakeFleet
    follower: Follower
    history: History
    controller: Controller


@asynccontextmanager
async def admin_door(
    *, keys: tuple[str, ...] = (), tokens: tuple[str, ...] = (ADMIN_TOKEN,), **sizes: int
) -> AsyncIterator[AdminDoor]:
    """Serve operators of a cluster with workers of these roles until the block ends."""
    desk, follower, history = AdminDesk(), Follower(), History(time.monotonic)
    control = create_server(_SECRET)
    add_GatewayServicer_to_server(ControlService(follower, desk, FakeLatencies()), control)
    link = GrpcGatewayLink(listen_on(control, "127.0.0.1", "the test"), _SECRET)
    await control.start()
    backend = FakeBackend()
    operators = Authenticator(tokens, name="admin token", closed="There is no admin token.")
    office = AdminOffice(operators, desk, lambda: follower.clients, lambda: history)
    config = GrpcConfig(port=0, readiness_interval_s=10.0)
    door = create_grpc_server(pipeline_of(backend), backend, Authenticator(keys), config, office)
    port = await door.start()
    fleet, ended = FakeFleet(eager=True), threading.Event()
    controller = _controller(fleet, link, sizes)
    await asyncio.to_thread(controller.introduce)
    ticking = asyncio.create_task(asyncio.to_thread(_run, controller, ended))
    try:
        yield AdminDoor(f"127.0.0.1:{port}", fleet, follower, history, controller)
    finally:
        ended.set()
        await ticking
        link.close()
        await door.stop(0.0)
        await control.stop(None)
    door.check_integrity()


def _controller(fleet: FakeFleet, link: GrpcGatewayLink, sizes: Mapping[str, int]) -> Controller:
    state, desired = serving(**sizes)
    for name in state.workers:
        fleet.sightings[name] = Sighting("ready", "a")
    return Controller(
        state,
        desired,
        fleet,
        link,
        config=ControllerConfig(
            ranks={"prefill": 1, "decode": 1}, contact=ContactLimits(first_s=1e6)
        ),
        chronicle=Chronicle(time.time),
        clock=lambda: _HASTE * time.monotonic(),
    )


def _run(controller: Controller, ended: threading.Event) -> None:
    while not ended.wait(0.02):
        controller.tick()
