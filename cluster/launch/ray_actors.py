"""Services as Ray actors.

Ray places, starts and watches the processes; no request and no token goes through it.
"""

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from twinflow.cluster.launch.base import ServiceKind, ServiceSpec, ServiceStatus
from twinflow.cluster.launch.local import service_environment
from twinflow.cluster.launch.logs import configure_logging
from twinflow.cluster.launch.service import ServiceRunner, create_service

NAMESPACE = "twinflow"
_POLL_S = 1.0
# A resource of our own that every service takes one of: Ray groups what asks for something only.
_PLACE = "twinflow_place"
_NUM_PLACES = 1 << 20
# Nothing is ever put into the object store; this is the smallest that Ray accepts.
_OBJECT_STORE_BYTES = 80 * 1024 * 1024


class ServiceActor:
    """A service in an actor's process; methods are called through Ray."""

    def __init__(self, kind: ServiceKind, config: bytes, log_level: str) -> None:
        configure_logging(log_level)
        self._runner = ServiceRunner(create_service(kind, config))

    async def start(self) -> ServiceStatus:
        """Start the service and return what became of it."""
        return await self._runner.start()

    async def status(self) -> ServiceStatus:
        """How far the service is."""
        return self._runner.status

    async def stop(self, grace_s: float) -> None:
        """Stop the service; the process ends when the actor is killed."""
        await self._runner.stop(grace_s)


class RayHandle:
    """A service in an actor."""

    def __init__(
        self, spec: ServiceSpec, where: PlacementGroupSchedulingStrategy | None = None
    ) -> None:
        self._name = spec.name
        actor_class: Any = ray.remote(ServiceActor)
        self._actor: Any = actor_class.options(
            name=spec.name,
            namespace=NAMESPACE,
            num_cpus=0,
            # Ray chooses which, and hides the others from the process.
            num_gpus=0 if spec.gpu is None else 1,
            resources={_PLACE: 1},
            scheduling_strategy=where,
            max_concurrency=16,
            runtime_env={"env_vars": service_environment(spec)},
        ).remote(spec.kind, spec.config, spec.log_level)
        self._actor.start.remote()
        self._stopped: Any = None

    @property
    def name(self) -> str:
        """See `ServiceHandle.name`."""
        return self._name

    def status(self) -> ServiceStatus:
        """See `ServiceHandle.status`."""
        try:
            status: ServiceStatus = ray.get(self._actor.status.remote(), timeout=_POLL_S)
        except GetTimeoutError:
            return ServiceStatus("starting", "waiting for its process")
        except RayError as error:
            return ServiceStatus("gone", f"the actor of {self._name} died: {_first_line(error)}")
        return status

    def stop(self, grace_s: float) -> None:
        """See `ServiceHandle.stop`."""
        self._stopped = self._actor.stop.remote(grace_s)

    def wait_stopped(self, timeout_s: float) -> bool:
        """See `ServiceHandle.wait_stopped`; ends the actor once its service has stopped."""
        try:
            if self._stopped is not None:
                ray.get(self._stopped, timeout=timeout_s)
        except GetTimeoutError:
            return False
        except RayError:
            return True
        self.kill()
        return True

    def kill(self) -> None:
        """See `ServiceHandle.kill`."""
        ray.kill(self._actor)


class RayLauncher:
    """Starts services as actors of a Ray cluster on this machine.

    Args:
        num_gpus: GPUs that it may give to services.
    """

    def __init__(self, num_gpus: int = 0) -> None:
        self._num_gpus = num_gpus
        self._handles: list[RayHandle] = []

    def open(self) -> None:
        """See `Launcher.open`."""
        with _keeping_handler(signal.SIGTERM):
            ray.init(
                address="local",
                namespace=NAMESPACE,
                include_dashboard=False,
                # Services do not ask for cores, and for each core Ray would start an idle worker.
                num_cpus=0,
                num_gpus=self._num_gpus,
                resources={_PLACE: _NUM_PLACES},
                object_store_memory=_OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                logging_level=logging.WARNING,
            )

    def start(self, specs: Sequence[ServiceSpec]) -> list[RayHandle]:
        """See `Launcher.start`.

        Ranks of a worker get their places in one piece and on one node, or wait for them together:
        a part of them would only hold GPUs that it cannot use.
        """
        if len(specs) == 1:
            handles = [RayHandle(spec) for spec in specs]
        else:
            together = placement_group([_places(spec) for spec in specs], strategy="STRICT_PACK")
            handles = [
                RayHandle(spec, PlacementGroupSchedulingStrategy(together, index))
                for index, spec in enumerate(specs)
            ]
        self._handles += handles
        return handles

    def close(self) -> None:
        """See `Launcher.close`."""
        ray.shutdown()
        self._handles.clear()


def _places(spec: ServiceSpec) -> dict[str, float]:
    """What a service takes up, in Ray's terms."""
    return {_PLACE: 1.0} if spec.gpu is None else {_PLACE: 1.0, "GPU": 1.0}


@contextmanager
def _keeping_handler(number: signal.Signals) -> Iterator[None]:
    """Ray takes SIGTERM for itself, to end the process; whoever waits for the signal keeps it."""
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, handler)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
