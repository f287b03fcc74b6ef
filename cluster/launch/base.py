"""What a launcher does: start services in processes of their own, watch them, stop them.

A service is a worker or a gateway. How it is configured is in its own config struct, which
travels as JSON; where its process lives is the launcher's business and nobody else's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from twinflow.cluster.launch.machine import Node

ServiceKind = Literal["worker", "gateway"]


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One process to start.

    Attributes:
        kind: what runs in it.
        name: unique in the deployment; the worker id of a worker, or of its rank 0.
        config: the service's configuration as JSON.
        gpu: number of the GPU that it alone may use, counting those that this process may use;
            None for none.
        threads: how many threads its numerical libraries may use.
        log_level: least severe log lines that it writes.
        node: address of the machine that it must run on; empty for that of the launcher.
        pool: the pool for which that machine declared room, some of which it takes; empty if it
            declared none.
    """

    kind: ServiceKind
    name: str
    config: bytes
    gpu: int | None = None
    threads: int = 1
    log_level: str = "info"
    node: str = ""
    pool: str = ""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """How far a service is.

    Attributes:
        state: `starting`, `ready`, `failed` (it said why) or `gone` (it did not).
        detail: what it is doing, or what went wrong.
        done: how much of that is done.
        total: how much there is; 0 if that is unknown.
        endpoints: name and address of what it serves, once ready.
        error_code: code of the error that made it fail.
    """

    state: Literal["starting", "ready", "failed", "gone"]
    detail: str = ""
    done: int = 0
    total: int = 0
    endpoints: tuple[tuple[str, str], ...] = ()
    error_code: str = ""


class ServiceHandle(Protocol):
    """A started service."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    def status(self) -> ServiceStatus:
        """How far it is now; does not wait for longer than a second."""
        ...

    def stop(self, grace_s: float) -> None:
        """Ask it to finish what runs within `grace_s` and to end; returns at once.

        Asked again, it waits no longer: what still runs ends with an error.
        """
        ...

    def wait_stopped(self, timeout_s: float) -> bool:
        """Whether its process has ended, waiting for at most `timeout_s`."""
        ...

    def kill(self) -> None:
        """End its process now."""
        ...


class Launcher(Protocol):
    """Starts services."""

    def nodes(self) -> Sequence[Node]:
        """The machines on which it can start services now; starts nothing itself.

        Raises:
            SetupError: there are none, or one of them could not run a service.
        """
        ...

    def open(self) -> None:
        """Make ready to start services."""
        ...

    def start(self, specs: Sequence[ServiceSpec]) -> Sequence[ServiceHandle]:
        """Start a process for each service, which share a node; returns before they are ready."""
        ...

    def stand_by(self) -> None:
        """Prepare for services that may have to be started; called while there is nothing to do."""
        ...

    def release(self, handles: Sequence[ServiceHandle]) -> None:
        """Free what services that have ended still take up; they were started together."""
        ...

    def close(self) -> None:
        """End whatever is left, and what `open` started."""
        ...
