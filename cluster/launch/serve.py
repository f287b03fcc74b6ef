"""`twinflow serve`: starts a deployment, watches it, and takes it down in order.

    check     the model's files, and whether it may fit: nothing has started yet; in a Ray cluster
              that exists already, wait until its nodes have room
    start     launcher → gateway (which refuses requests) and workers, all at once
              → the gateway meets the workers → a token through every pair
    stop      gateway drains (no new requests, running ones finish) → workers → launcher

Ctrl-C and SIGTERM mean the same. The first one stops in order; the second ends running requests
with an error that their clients get; the third kills. While it starts, the first one kills.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Protocol

from twinflow.cluster.cli.progress import ReadySummary, ServeUI
from twinflow.cluster.config import ServeConfig
from twinflow.cluster.controller.chronicle import Chronicle
from twinflow.cluster.controller.controller import Controller, ControllerConfig
from twinflow.cluster.controller.fleet import GatewayLink
from twinflow.cluster.controller.gateway_link import GrpcGatewayLink
from twinflow.cluster.controller.state import ROLES, ClusterState, Desired, Worker
from twinflow.cluster.flag_values import LOCAL
from twinflow.cluster.launch import ray_environment
from twinflow.cluster.launch.base import Launcher, ServiceHandle, ServiceStatus
from twinflow.cluster.launch.deployment import (
    WorkerPlan,
    WorkerPlanner,
    internal_tls,
    new_token,
    plan_gateway,
)
from twinflow.cluster.launch.fleet import LaunchedFleet, failure_among
from twinflow.cluster.launch.latents import choose_latents
from twinflow.cluster.launch.machine import Node
from twinflow.cluster.launch.places import NoRoom, place_workers
from twinflow.cluster.launch.preflight import check_fit, check_model
from twinflow.cluster.launch.readiness import missing_for_readiness
from twinflow.protos.errors import (
    DeadlineExceeded,
    ServerError,
    SetupError,
    TwinflowError,
    from_code,
)
from twinflow.workers.mutual_tls import MutualTls

START_TIMEOUT_S = 600.0
READY_TIMEOUT_S = 60.0
# What a service gets, beyond the grace of its requests, to end; and what it gets in a hurry.
_STOP_EXTRA_S = 15.0
_HURRIED_STOP_S = 5.0
# Orders to stop that mean a hurry, and that mean the end.
_HURRY = 2
_KILL = 3
# Exit status of a command that was stopped in a hurry; 128 + SIGINT, as shells have it.
HURRIED_STATUS = 130
_POLL_S = 0.1
# How often the controller looks.
_WATCH_S = 0.2


class Link(GatewayLink, Protocol):
    """A way to the gateway that is closed at the end."""

    def close(self) -> None:
        """Nothing more is said."""
        ...


class _Interrupts:
    """Counts the orders to stop."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, _signal: int, _frame: FrameType | None) -> None:
        """A signal handler."""
        self.count += 1


class Interrupted(Exception):
    """The operator ordered to stop."""


class Deployment:
    """The processes of one `twinflow serve`.

    Args:
        config: what to serve.
        launcher: starts processes.
        ui: hears how far it is.
        interrupts: orders to stop so far.
        check: refuses nodes that the model does not fit on.
        readiness: what is missing at a gateway's HTTP address; empty when it is ready.
        connect: a way to the gateway with this address and the deployment's secret.
        sleep: waits.
        clock: seconds, monotonic.
        wall_clock: Unix time in seconds, for what operators read.
    """

    def __init__(
        self,
        config: ServeConfig,
        launcher: Launcher,
        ui: ServeUI,
        interrupts: Callable[[], int],
        *,
        check: Callable[[Sequence[Node]], None],
        readiness: Callable[[str], str],
        connect: Callable[[str, str], Link] = GrpcGatewayLink,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._wall_clock = wall_clock
        self._config = config
        self._launcher = launcher
        self._ui = ui
        self._interrupts = interrupts
        self._check = check
        self._readiness = readiness
        self._connect = connect
        self._sleep = sleep
        self._clock = clock
        self._fleet: LaunchedFleet | None = None
        self._controller: Controller | None = None
        self._link: Link | None = None
        self._gateway: ServiceHandle | None = None

    def run(self) -> int:
        """Serve until told to stop, and leave nothing behind; returns the exit status.

        That is 0 after an orderly stop, 130 after a hurried one and 1 after a failure.

        Raises:
            SetupError: it could not start, and what to change.
        """
        try:
            nodes = self.find_room()
            self._check(nodes)
            self._ui.ready(self.start(nodes))
            self.watch()
            self._ui.phase("Stopping", "running requests finish; Ctrl-C again cuts them off")
            self.stop(self._config.shutdown_timeout)
        except Interrupted:
            self._ui.phase("Stopping", "nothing is being served yet")
            self._kill(self._handles())
        except SetupError:
            raise
        except TwinflowError as error:
            self._ui.message(f"Stopping, because {error}")
            self.stop(0.0)
            return 1
        finally:
            self._launcher.close()
        self._ui.message("Stopped.")
        return HURRIED_STATUS if self._interrupts() >= _HURRY else 0

    def find_room(self) -> Sequence[Node]:
        """The launcher's nodes; those of a cluster once there is room for all workers.

        Raises:
            SetupError: this machine has no room, or a node could not run a worker.
            DeadlineExceeded: the cluster has no room, and got none.
            Interrupted: an order to stop came first.
        """
        end = self._clock() + START_TIMEOUT_S
        missing = ""
        while True:
            nodes = self._launcher.nodes()
            try:
                place_workers(self._config, nodes)
            except NoRoom as error:
                if self._config.address == LOCAL:
                    raise
                if error.message != missing:
                    missing = error.message
                    self._ui.phase("Waiting for nodes", missing)
                self._wait(end, f"room in the Ray cluster: {missing}")
            else:
                return nodes

    def start(self, nodes: Sequence[Node]) -> ReadySummary:
        """Start everything and wait until a token went through every pair.

        Raises:
            SetupError: the nodes have not got what the configuration wants, or attention would be
                approximated and nobody knows how well; nothing was started.
            TwinflowError: a service failed, and why.
            Interrupted: an order to stop came first.
        """
        token, latents = new_token(), choose_latents(self._config)
        if latents.warning:
            self._ui.message(f"Warning: {latents.warning}")
        planner = WorkerPlanner(self._config, nodes, token, latents)
        plans = planner.first()
        self._ui.phase("Starting Ray" if self._config.launcher == "ray" else "Starting")
        self._launcher.open()
        names = [plan.name for plan in plans]
        self._ui.phase("Starting gateway and workers", ", ".join(names))
        # First, so that whoever asks meanwhile is answered, and a taken port is found at once.
        (self._gateway,) = self._launcher.start([plan_gateway(self._config, token, latents)])
        self._fleet = LaunchedFleet(self._launcher, planner)
        for plan in plans:
            self._fleet.adopt(plan)
        endpoints = self._await(self._handles())
        served = endpoints[self._gateway.name]
        self._link = self._connect(served["control"], token)
        workers = [
            first_worker(plan, number, endpoints[plan.name]["grpc"], self._clock())
            for number, plan in enumerate(plans, 1)
        ]
        self._controller = self._control(workers, self._link, planner)
        self._controller.introduce()
        self._ui.phase("Checking", "a token through every prefill and decode pair")
        self._await_ready(served["http"])
        pools: dict[str, list[str]] = {}
        for plan in plans:
            pools.setdefault(plan.role, []).append(plan.name)
        return ReadySummary(
            model=self._config.model_names[0],
            http_url=f"http://{served['http']}",
            grpc_target=served["grpc"],
            pools={role: tuple(names) for role, names in pools.items()},
            ranks={plan.role: len(plan.ranks) for plan in plans},
            needs_key=bool(self._config.api_key),
        )

    def watch(self) -> None:
        """Keep the workers as they are wanted; return when an order to stop comes.

        A worker that dies, freezes or loses a rank is ended and replaced; the gateway moves its
        requests to the others meanwhile, every worker being able to do both phases.

        Raises:
            TwinflowError: the gateway has failed or is gone, or the last worker is, and those that
                shall replace it do not start.
        """
        while not self._interrupts():
            if self._gateway is not None:
                self._statuses([self._gateway])
            if self._controller is not None:
                self._controller.tick()
                if self._controller.at_rest:
                    self._launcher.stand_by()
            self._sleep(_WATCH_S)

    def _control(self, workers: Sequence[Worker], link: Link, planner: WorkerPlanner) -> Controller:
        """The controller of workers that serve as the configuration wants them."""
        if self._fleet is None:
            raise RuntimeError("nothing has been started")
        state = ClusterState(
            now=self._clock(),
            workers={worker.worker_id: worker for worker in workers},
            next_epoch=len(workers) + 1,
            no_flips=planner.no_flips,
        )
        config = self._config
        return Controller(
            state,
            Desired(sizes={role: getattr(config, role) for role in ROLES}),
            self._fleet,
            link,
            config=ControllerConfig(ranks={role: config.ranks(role) for role in ROLES}),
            chronicle=Chronicle(self._wall_clock, self._ui.message),
            clock=self._clock,
        )

    def stop(self, grace_s: float) -> None:
        """Take everything down: first the gateway, then the workers; further orders hurry."""
        for group in ([self._gateway] if self._gateway else [], self._ranks()):
            self._stop_group(group, grace_s)
        if self._link is not None:
            self._link.close()

    def _stop_group(self, handles: Sequence[ServiceHandle], grace_s: float) -> None:
        hurried = self._interrupts() >= _HURRY
        end = self._order_stop(handles, 0.0 if hurried else grace_s, hurried=hurried)
        while left := [handle for handle in handles if not handle.wait_stopped(_POLL_S)]:
            if not hurried and self._interrupts() >= _HURRY:
                hurried = True
                self._ui.phase("Stopping at once", "running requests end with an error")
                end = self._order_stop(left, 0.0, hurried=True)
            if self._interrupts() >= _KILL or self._clock() > end:
                names = ", ".join(handle.name for handle in left)
                self._ui.message(f"Killing {names}")
                self._kill(left)
                return

    def _order_stop(
        self, handles: Sequence[ServiceHandle], grace_s: float, *, hurried: bool
    ) -> float:
        """Tell services to stop; returns until when they may take."""
        for handle in handles:
            handle.stop(grace_s)
        return self._clock() + (_HURRIED_STOP_S if hurried else grace_s + _STOP_EXTRA_S)

    def _kill(self, handles: Sequence[ServiceHandle]) -> None:
        for handle in handles:
            handle.kill()

    def _ranks(self) -> list[ServiceHandle]:
        return self._fleet.handles if self._fleet is not None else []

    def _handles(self) -> list[ServiceHandle]:
        return [*self._ranks(), *([self._gateway] if self._gateway else [])]

    def _statuses(self, handles: Sequence[ServiceHandle]) -> dict[str, ServiceStatus]:
        """How far services are, by name.

        Raises:
            TwinflowError: one has failed or is gone.
        """
        statuses = {handle.name: handle.status() for handle in handles}
        failed = failure_among(statuses)
        if failed is not None:
            raise _failure(*failed)
        return statuses

    def _await(self, handles: Sequence[ServiceHandle]) -> dict[str, dict[str, str]]:
        """Wait until all services are ready; returns their endpoints by name."""
        end = self._clock() + START_TIMEOUT_S
        while True:
            statuses = self._statuses(handles)
            late = [name for name, status in statuses.items() if status.state != "ready"]
            if not late:
                return {name: dict(status.endpoints) for name, status in statuses.items()}
            self._ui.progress(
                sum(status.done for status in statuses.values()),
                sum(status.total for status in statuses.values()),
            )
            self._wait(end, f"{', '.join(late)} to start: {statuses[late[0]].detail}")

    def _await_ready(self, address: str) -> None:
        end = self._clock() + READY_TIMEOUT_S
        while missing := self._readiness(address):
            self._statuses(self._handles())
            self._wait(end, f"a token through every prefill and decode pair: {missing}")

    def _wait(self, end: float, what: str) -> None:
        if self._interrupts():
            raise Interrupted
        if self._clock() > end:
            raise DeadlineExceeded(f"gave up waiting for {what}")
        self._sleep(_POLL_S)


def create_launcher(config: ServeConfig) -> Launcher:
    """The launcher that a configuration asks for; Ray is imported only if it is used."""
    if config.launcher == "local":
        from twinflow.cluster.launch.local import LocalLauncher  # noqa: PLC0415

        return LocalLauncher(with_gpus=config.device != "cpu", standby=config.standby)
    if config.address == LOCAL:
        ray_environment.prepare_own()
    else:
        ray_environment.prepare()
    from twinflow.cluster.launch.ray_actors import create_ray_launcher  # noqa: PLC0415

    return create_ray_launcher(config)


def serve(
    config: ServeConfig,
    ui: ServeUI,
    create: Callable[[ServeConfig], Launcher] = create_launcher,
) -> int:
    """Serve until told to stop; returns the exit status of the command.

    Raises:
        SetupError: it could not start, and what to change; for most of what is wrong with a model,
            before there is a launcher.
    """
    with _counting_signals() as interrupts:
        tls = MutualTls.of(internal_tls(config))
        model = check_model(config)
        deployment = Deployment(
            config,
            create(config),
            ui,
            lambda: interrupts.count,
            check=lambda nodes: check_fit(config, model, nodes),
            readiness=missing_for_readiness,
            connect=partial(GrpcGatewayLink, tls=tls),
        )
        return deployment.run()


def first_worker(plan: WorkerPlan, epoch: int, address: str, now: float) -> Worker:
    """A worker that serves from the beginning."""
    return Worker(
        worker_id=plan.name,
        epoch=epoch,
        role=plan.role,
        phase="serving",
        since=now,
        address=address,
    )


@contextmanager
def _counting_signals() -> Iterator[_Interrupts]:
    interrupts = _Interrupts()
    previous = {
        number: signal.signal(number, interrupts.note) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield interrupts
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _failure(name: str, status: ServiceStatus) -> TwinflowError:
    if status.error_code:
        return from_code(status.error_code, f"{name}: {status.detail}")
    return ServerError(status.detail if status.state == "gone" else f"{name}: {status.detail}")
