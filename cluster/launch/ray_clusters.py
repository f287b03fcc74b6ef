"""The two kinds of Ray cluster a deployment runs on: one of its own, or one that is there already.

A node of a cluster says in Ray's resources which pools it takes: `twinflow_prefill: 2` is room for
two ranks of prefill workers. Once any node says so, those that do not take no workers. As long as
none does, every node with processors or GPUs takes all.
"""

import logging
import secrets
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, get_args

import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray.exceptions import GetTimeoutError, RayError

from twinflow.cluster.launch.machine import LOOPBACK, Machine, Node, this_machine
from twinflow.cluster.launch.survey import NodeReport, Survey
from twinflow.protos.errors import SetupError
from twinflow.workers.role import Role

_RESOURCE_PREFIX = "twinflow_"
# What every service takes one of on a node that we have started ourselves.
_PLACE = "twinflow_place"
_NUM_PLACES = 1 << 20
# Every node has one of the resource that is its address; the smallest part pins a service to it.
_PINCH = 0.001
# Nothing is ever put into the object store; this is the smallest that Ray accepts.
_OBJECT_STORE_BYTES = 80 * 1024 * 1024
# Of a process that starts, reads a model's small files and may ask torch for GPUs.
_SURVEY_TIMEOUT_S = 120.0


def pool_resource(role: str) -> str:
    """What a node declares to take workers of a pool, one for each rank."""
    return _RESOURCE_PREFIX + role


def room_of(resources: Mapping[str, float]) -> dict[Role, int]:
    """Ranks of each pool that a node declares to take; empty if it declares none."""
    roles: tuple[Role, ...] = get_args(Role)
    found = {role: int(resources.get(pool_resource(role), 0)) for role in roles}
    return {role: count for role, count in found.items() if count}


class RayCluster(Protocol):
    """A Ray cluster, connected to or not."""

    def pin(self, host: str) -> dict[str, float]:
        """What a service claims to run on the node with this address, or on this one if empty.

        Never nothing: Ray groups what asks for something only.
        """
        ...

    def connect(self) -> None:
        """Make this process a driver of the cluster; again does nothing.

        Raises:
            SetupError: it cannot be.
        """
        ...

    def nodes(self) -> list[Node]:
        """See `Launcher.nodes`."""
        ...


class OwnCluster:
    """A cluster of one node, this machine, that starts and ends with the deployment.

    Args:
        with_gpus: give services the GPUs of the machine, if it has some.
    """

    def __init__(self, *, with_gpus: bool) -> None:
        self._with_gpus = with_gpus
        self._machine: Machine | None = None

    def pin(self, host: str) -> dict[str, float]:
        """See `RayCluster.pin`; there is one node only."""
        return {_PLACE: 1.0}

    def nodes(self) -> list[Node]:
        """See `Launcher.nodes`."""
        if self._machine is None:
            self._machine = this_machine(with_gpus=self._with_gpus)
        return [Node(self._machine)]

    def connect(self) -> None:
        """See `RayCluster.connect`."""
        (node,) = self.nodes()
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                # Services do not ask for cores, and for each core Ray would start an idle worker.
                num_cpus=0,
                num_gpus=len(node.machine.gpus.free_memory),
                resources={_PLACE: _NUM_PLACES},
                object_store_memory=_OBJECT_STORE_BYTES,
                _node_ip_address=LOOPBACK,
                logging_level=logging.WARNING,
            )
        except Exception as error:  # Ray raises nothing more precise
            raise SetupError(
                f"Ray did not start: {first_line(error)} Its logs are under /tmp/ray; "
                "--launcher local serves without Ray."
            ) from error


class JoinedCluster:
    """A cluster that somebody else has started.

    Args:
        address: `auto`, or host and port of its head.
        survey: what is asked of each node before it gets workers.
        trusting: join one that does not ask for a token.
    """

    def __init__(self, address: str, survey: Survey, *, trusting: bool) -> None:
        self._address = address
        self._survey = survey
        self._trusting = trusting
        self._known: dict[str, NodeReport] = {}
        self._home = ""

    def connect(self) -> None:
        """See `RayCluster.connect`."""
        if self._home:
            return
        if not (self._trusting or is_token_auth_enabled()):
            raise SetupError(
                f"--address {self._address}: without a token, whoever reaches a port of Ray can "
                "run code on all nodes: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN for the cluster "
                "and for this command, or --insecure"
            )
        try:
            # A namespace of its own: several deployments may share the cluster.
            ray.init(
                address=self._address,
                namespace=f"twinflow-{secrets.token_hex(4)}",
                logging_level=logging.WARNING,
            )
        except Exception as error:  # Ray raises nothing more precise
            raise SetupError(
                f"--address {self._address}: {first_line(error)} This machine must be a node of "
                "the cluster (ray start), with its token in RAY_AUTH_TOKEN."
            ) from error
        here = ray.get_runtime_context().get_node_id()
        (node,) = [found for found in ray.nodes() if found["NodeID"] == here]
        self._home = node["NodeManagerAddress"]

    def pin(self, host: str) -> dict[str, float]:
        """See `RayCluster.pin`."""
        return {f"node:{host or self._home}": _PINCH}

    def nodes(self) -> list[Node]:
        """See `Launcher.nodes`."""
        self.connect()
        alive = [found for found in ray.nodes() if found["Alive"]]
        eligible = _eligible(alive)
        self._ask({found["NodeManagerAddress"] for found in eligible} - self._known.keys())
        return [self._node(found) for found in eligible]

    def _node(self, found: Mapping[str, Any]) -> Node:
        host: str = found["NodeManagerAddress"]
        machine = self._known[host].machine
        declared = int(found["Resources"].get("CPU", 0))
        cores = min(declared, machine.cores) if declared else machine.cores
        limited = Machine(cores, machine.free_memory, machine.gpus)
        return Node(limited, host, room_of(found["Resources"]) or None)

    def _ask(self, hosts: set[str]) -> None:
        """Survey nodes; each of them runs a process for it."""
        task: Any = ray.remote(Survey.report)
        asked = {
            host: task.options(num_cpus=0, resources=self.pin(host)).remote(self._survey)
            for host in sorted(hosts)
        }
        for host, answer in asked.items():
            try:
                report: NodeReport = ray.get(answer, timeout=_SURVEY_TIMEOUT_S)
            except GetTimeoutError as error:
                raise SetupError(
                    f"node {host} did not say within {_SURVEY_TIMEOUT_S:g} s what it has"
                ) from error
            except (RayError, RuntimeError) as error:
                raise SetupError(
                    f"node {host} cannot run workers, is twinflow installed there? "
                    f"{_last_line(error)}"
                ) from error
            self._survey.check(host, report)
            self._known[host] = report


def _eligible(alive: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The nodes that take workers, in the order of their addresses."""
    ordered = sorted(alive, key=lambda found: str(found["NodeManagerAddress"]))
    declaring = [found for found in ordered if room_of(found["Resources"])]
    return declaring or [found for found in ordered if {"CPU", "GPU"} & found["Resources"].keys()]


@contextmanager
def keeping_handler(number: signal.Signals) -> Iterator[None]:
    """Ray takes SIGTERM for itself, to end the process; whoever waits for the signal keeps it."""
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, handler)


def first_line(error: Exception) -> str:
    """What Ray has to say, without the trace behind it."""
    return str(error).strip().split("\n", 1)[0]


def _last_line(error: Exception) -> str:
    """What a process that Ray ran said last, which is what went wrong."""
    return str(error).strip().rsplit("\n", 1)[-1].strip()
