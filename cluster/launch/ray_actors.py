"""Services as Ray actors.

Ray places, starts and watches the processes; no request and no token goes through it.
"""

import math
import signal
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from twinflow.cluster.config import ServeConfig
from twinflow.cluster.flag_values import LOCAL
from twinflow.cluster.launch.base import ServiceHandle, ServiceKind, ServiceSpec, ServiceStatus
from twinflow.cluster.launch.local import service_environment
from twinflow.cluster.launch.logs import configure_logging
from twinflow.cluster.launch.machine import Node
from twinflow.cluster.launch.ray_clusters import (
    JoinedCluster,
    OwnCluster,
    RayCluster,
    first_line,
    keeping_handler,
    pool_resource,
)
from twinflow.cluster.launch.service import ServiceRunner, create_service
from twinflow.cluster.launch.silence import Silence
from twinflow.cluster.launch.survey import Survey

_POLL_S = 0.1
_GPU = "GPU"


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
    """A service in an actor.

    Args:
        spec: the service.
        claims: what it takes up of a node, in Ray's terms.
        where: its part of a placement group, if it is in one.
    """

    def __init__(
        self,
        spec: ServiceSpec,
        claims: Mapping[str, float],
        where: PlacementGroupSchedulingStrategy | None = None,
    ) -> None:
        self._name = spec.name
        resources = dict(claims)
        actor_class: Any = ray.remote(ServiceActor)
        self._actor: Any = actor_class.options(
            # A name is free again only some time after its actor has ended.
            name=f"{spec.name}.{uuid.uuid4().hex[:8]}",
            num_cpus=0,
            # Ray chooses which, and hides the others from the process.
            num_gpus=resources.pop(_GPU, 0),
            resources=resources,
            scheduling_strategy=where,
            max_concurrency=16,
            runtime_env={"env_vars": service_environment(spec)},
        ).remote(spec.kind, spec.config, spec.log_level)
        self._actor.start.remote()
        self._stopped: Any = None
        self._asked: Any = None
        self._latest = ServiceStatus("starting", "waiting for its process")
        # Ray may have to wait for room, and says itself that a process did not start.
        self._silence = Silence(time.monotonic, first_s=math.inf)

    @property
    def name(self) -> str:
        """See `ServiceHandle.name`."""
        return self._name

    def status(self) -> ServiceStatus:
        """See `ServiceHandle.status`; of an actor that does not answer, what it said last."""
        if self._asked is None:
            self._asked = self._actor.status.remote()
        answered, _ = ray.wait([self._asked], timeout=_POLL_S)
        if answered:
            self._asked = None
            self._silence.broken()
            try:
                self._latest = ray.get(answered[0])
            except RayError as error:
                detail = f"the actor of {self._name} died: {first_line(error)}"
                self._latest = ServiceStatus("gone", detail)
        return self._silence.judge(self._name, self._latest)

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
    """Starts services as actors of a Ray cluster.

    Args:
        cluster: where they run.
    """

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self._groups: dict[str, PlacementGroup] = {}

    def nodes(self) -> list[Node]:
        """See `Launcher.nodes`."""
        with keeping_handler(signal.SIGTERM):
            return self._cluster.nodes()

    def open(self) -> None:
        """See `Launcher.open`.

        Raises:
            SetupError: Ray does not start.
        """
        with keeping_handler(signal.SIGTERM):
            self._cluster.connect()

    def start(self, specs: Sequence[ServiceSpec]) -> list[RayHandle]:
        """See `Launcher.start`.

        Ranks of a worker get their places in one piece and on one node, or wait for them together:
        a part of them would only hold GPUs that it cannot use.
        """
        claims = [self._claims(spec) for spec in specs]
        if len(specs) == 1:
            return [RayHandle(specs[0], claims[0])]
        together = placement_group(claims, strategy="STRICT_PACK")
        self._groups[specs[0].name] = together
        return [
            RayHandle(spec, claims[index], PlacementGroupSchedulingStrategy(together, index))
            for index, spec in enumerate(specs)
        ]

    def stand_by(self) -> None:
        """See `Launcher.stand_by`; Ray's processes are Ray's."""

    def release(self, handles: Sequence[ServiceHandle]) -> None:
        """See `Launcher.release`."""
        group = self._groups.pop(handles[0].name, None)
        if group is not None:
            remove_placement_group(group)

    def _claims(self, spec: ServiceSpec) -> dict[str, float]:
        """What a service takes up of its node, in Ray's terms."""
        claims = self._cluster.pin(spec.node)
        if spec.gpu is not None:
            claims[_GPU] = 1.0
        if spec.pool:
            claims[pool_resource(spec.pool)] = 1.0
        return claims

    def close(self) -> None:
        """See `Launcher.close`."""
        ray.shutdown()
        self._groups.clear()


def create_ray_launcher(config: ServeConfig) -> RayLauncher:
    """The launcher that a configuration asks for."""
    with_gpus = config.device != "cpu"
    if config.address == LOCAL:
        return RayLauncher(OwnCluster(with_gpus=with_gpus))
    survey = Survey(Path(config.model).resolve(), with_gpus=with_gpus)
    return RayLauncher(JoinedCluster(config.address, survey, trusting=config.insecure))
