"""Services as plain processes of this machine, without Ray.

Each process gets its name and configuration and then orders as lines of its standard input, and
reports as JSON lines on its standard output. It stops when its input ends, so it never outlives its
launcher. It loads its code before it is told what it is, so that some can be started beforehand.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import msgspec

from twinflow.cluster.cli.environment import process_environment
from twinflow.cluster.launch.base import ServiceHandle, ServiceKind, ServiceSpec, ServiceStatus
from twinflow.cluster.launch.machine import Node, this_machine
from twinflow.cluster.launch.silence import Silence
from twinflow.parallel.links.nccl_environment import NCCL_ENVIRONMENT

# Idle OpenMP threads must not burn the cores that other processes of the machine need.
THREAD_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
_VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


def service_environment(spec: ServiceSpec) -> dict[str, str]:
    """Environment variables that a service's numerical libraries read at import."""
    links = {} if spec.gpu is None else NCCL_ENVIRONMENT
    return {**THREAD_ENVIRONMENT, **links, "OMP_NUM_THREADS": str(spec.threads)}


def gpu_environment(gpu: int | None, environ: Mapping[str, str]) -> dict[str, str]:
    """What lets a process see one GPU only; nothing for a process without one.

    Args:
        gpu: its number among those that `environ` leaves visible.
        environ: of this process; may name GPUs in CUDA's ways, by number or by id.
    """
    if gpu is None:
        return {}
    visible = environ.get(_VISIBLE_GPUS, "").split(",")
    return {_VISIBLE_GPUS: visible[gpu].strip() if visible != [""] else str(gpu)}


class Assignment(msgspec.Struct, frozen=True):
    """What a process is told first: what it is.

    Attributes:
        name: of the service.
        config: of the service.
    """

    name: str
    config: msgspec.Raw


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a process is told after that.

    Attributes:
        stop: end, and what runs may take so many seconds.
    """

    stop: float


@dataclass(frozen=True, slots=True)
class Shell:
    """What a process must know before it can load its code; of a service, all but what it is.

    Attributes:
        kind: what will run in it.
        log_level: least severe log lines that it writes.
        environment: names and values of its variables, in order.
    """

    kind: ServiceKind
    log_level: str
    environment: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, spec: ServiceSpec, environ: Mapping[str, str]) -> "Shell":
        """Of a service whose launcher has these variables."""
        own = {**environ, **service_environment(spec), **gpu_environment(spec.gpu, environ)}
        return cls(spec.kind, spec.log_level, tuple(sorted(own.items())))


class LocalHandle:
    """A child process: first a shell, then a service in it.

    Args:
        shell: of the service.
    """

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self._name = ""
        self._status = ServiceStatus("starting", "starting the process")
        self._silence = Silence(time.monotonic)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "twinflow.cluster.launch.local_process",
                shell.kind,
                shell.log_level,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(shell.environment),
            # Ctrl-C goes to the launcher alone, which stops its services in order.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="status", daemon=True)
        self._reader.start()

    def assign(self, spec: ServiceSpec) -> None:
        """Tell the process, once, which service it is."""
        self._name = spec.name
        # Whoever waited for this had nothing to say.
        self._silence = Silence(time.monotonic)
        self._say(msgspec.json.encode(Assignment(spec.name, msgspec.Raw(spec.config))))

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    @property
    def name(self) -> str:
        """See `ServiceHandle.name`."""
        return self._name

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def status(self) -> ServiceStatus:
        """See `ServiceHandle.status`."""
        code = self._process.poll()
        if code is not None and self._status.state in ("starting", "ready"):
            return ServiceStatus("gone", f"the process of {self._name} ended with status {code}")
        return self._silence.judge(self._name, self._status)

    def stop(self, grace_s: float) -> None:
        """See `ServiceHandle.stop`."""
        self._say(msgspec.json.encode(Order(stop=grace_s)))

    def wait_stopped(self, timeout_s: float) -> bool:
        """See `ServiceHandle.wait_stopped`."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        self._close()
        return True

    def kill(self) -> None:
        """See `ServiceHandle.kill`."""
        self._process.kill()
        self._process.wait()
        self._close()

    def _say(self, line: bytes) -> None:
        if self._process.stdin is not None:
            try:
                self._process.stdin.write(line + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                return  # it is gone, as its status will tell

    def _read(self) -> None:
        if self._process.stdout is not None:
            for line in self._process.stdout:
                self._status = msgspec.json.decode(line, type=ServiceStatus)
                self._silence.broken()

    def _close(self) -> None:
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # Closing flushes what a process that was gone already could not be told.
                with suppress(BrokenPipeError):
                    pipe.close()


class LocalLauncher:
    """Starts services as child processes.

    Args:
        with_gpus: give them the GPUs of the machine, if it has some.
        standby: processes that load the code of a worker beforehand, and wait to be one.
    """

    def __init__(self, *, with_gpus: bool, standby: int = 0) -> None:
        self._with_gpus = with_gpus
        self._standby = standby
        self._handles: list[LocalHandle] = []
        self._waiting: list[LocalHandle] = []
        self._shell: Shell | None = None

    def nodes(self) -> list[Node]:
        """See `Launcher.nodes`."""
        return [Node(this_machine(with_gpus=self._with_gpus))]

    def open(self) -> None:
        """See `Launcher.open`."""

    def start(self, specs: Sequence[ServiceSpec]) -> list[LocalHandle]:
        """See `Launcher.start`."""
        handles = [self._start(spec) for spec in specs]
        self._handles += handles
        return handles

    def _start(self, spec: ServiceSpec) -> LocalHandle:
        shell = Shell.of(spec, process_environment())
        if spec.kind == "worker" and spec.gpu is None:
            # The next worker most likely has the same. One with a GPU has another for each GPU.
            self._shell = shell
        fitting = (one for one in self._waiting if one.shell == shell and one.alive)
        handle = next(fitting, None)
        if handle is None:
            handle = LocalHandle(shell)
        else:
            self._waiting.remove(handle)
        handle.assign(spec)
        return handle

    @property
    def waiting(self) -> tuple[int, ...]:
        """Processes that are no service yet."""
        return tuple(handle.pid for handle in self._waiting)

    def stand_by(self) -> None:
        """See `Launcher.stand_by`."""
        if self._shell is None:
            return
        for handle in self._waiting:
            if handle.shell != self._shell or not handle.alive:
                handle.kill()
        self._waiting = [one for one in self._waiting if one.shell == self._shell and one.alive]
        while len(self._waiting) < self._standby:
            self._waiting.append(LocalHandle(self._shell))

    def release(self, handles: Sequence[ServiceHandle]) -> None:
        """See `Launcher.release`."""
        self._handles = [handle for handle in self._handles if handle not in handles]

    def close(self) -> None:
        """See `Launcher.close`."""
        for handle in (*self._handles, *self._waiting):
            if not handle.wait_stopped(0):
                handle.kill()
        self._handles.clear()
        self._waiting.clear()


def encode_status(status: ServiceStatus) -> bytes:
    """A status as a JSON line."""
    return msgspec.json.encode(asdict(status)) + b"\n"
