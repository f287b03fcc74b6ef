"""`twinflow serve` as a child of the test: started, watched from outside, and taken down.

Every process that descends from the command carries a mark in its environment, so that those whose
parent has died are found too. Leaving `serving` interrupts the command and demands exit status 0,
no process left and no traceback in the log; what is left for whatever reason is killed.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from tests.support.scrapes import scrape

from twinflow.cluster.chaos.scrape import Scrape

# Bounds of waits on a machine that does much else; nothing takes that long when all is well.
START_S = 110.0
STOP_S = 60.0
QUIET_S = 30.0

_MARK = "TEST_DEPLOYMENT"
_READY = re.compile(r"HTTP +(http://\S+)/v1\n +gRPC +(\S+)\n")
_STARTED = re.compile(r"\[ *([0-9.]+) s\] Ready: (\S+)\n")
_LOG_TAIL = 4000


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds of the machine.

    Attributes:
        fds: open file descriptors.
        threads: of the process.
    """

    fds: int
    threads: int


class Deployment:
    """A running `twinflow serve`.

    Args:
        model: directory of the model.
        flags: of the command; ports are chosen by the system.

    Attributes:
        http_url: of the HTTP door, without a path.
        grpc_target: of the gRPC door.
        model: name that requests use.
        start_s: what the command says it took to start.
    """

    def __init__(self, model: Path, *flags: str) -> None:
        self._mark = uuid.uuid4().hex
        self._seen: set[psutil.Process] = set()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - `kill` closes it
        command = [sys.executable, "-m", "twinflow", "serve", str(model)]
        self._process = subprocess.Popen(
            [*command, "--port", "0", "--grpc-port", "0", *flags],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, _MARK: self._mark},
            start_new_session=True,
        )
        self.http_url = self.grpc_target = self.model = ""
        self.start_s = 0.0

    @property
    def pid(self) -> int:
        """Of the command itself."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What the command and its processes have written so far."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode(errors="replace")

    def wait_ready(self) -> None:
        """Wait for the summary and read the endpoints in it."""

        def ready() -> bool:
            assert self._process.poll() is None, f"it ended: {self.log[-_LOG_TAIL:]}"
            return _READY.search(self.log) is not None and "Ctrl-C" in self.log

        wait_until(ready, f"twinflow serve {self._process.args!r}", START_S, lambda: self.log)
        endpoints, started = _READY.search(self.log), _STARTED.search(self.log)
        assert endpoints and started
        self.http_url, self.grpc_target = endpoints.groups()
        self.start_s, self.model = float(started[1]), started[2]

    def processes(self) -> dict[int, psutil.Process]:
        """Every live process of the deployment by its id, orphans included."""
        marked = {process for process in psutil.process_iter() if self._has_mark(process)}
        # A process that writes its title over its environment loses the mark.
        for process in self._seen | marked:
            with suppress(psutil.NoSuchProcess):
                marked.update(process.children(recursive=True))
        self._seen |= marked
        return {process.pid: process for process in self._seen if _lives(process)}

    def _has_mark(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.environ().get(_MARK) == self._mark
        return False

    def footprints(self) -> Mapping[int, Footprint]:
        """What each process holds, by process id."""
        return {
            pid: Footprint(process.num_fds(), process.num_threads())
            for pid, process in self.processes().items()
        }

    def scrape(self) -> Scrape:
        """The metrics now."""
        return scrape(self.http_url)

    def wait_idle(self) -> Scrape:
        """Wait until no request holds anything anywhere; returns the metrics then."""
        wait_until(
            lambda: not self.scrape().held(),
            "every resource to be given back",
            QUIET_S,
            lambda: f"{self.scrape().held()}\n{self.log[-_LOG_TAIL:]}",
        )
        return self.scrape()

    @property
    def workers(self) -> list[psutil.Process]:
        """The workers' processes of the local launcher, in the order in which it names them; where
        workers have ranks, all of those of the first worker come before those of the second."""
        found = [p for p in self.processes().values() if "worker" in p.cmdline()]
        return sorted(found, key=lambda process: process.pid)

    def interrupt(self) -> None:
        """Ctrl-C: a terminal sends the signal to everything in its foreground."""
        self.processes()  # so that whoever loses its parent now is known
        os.killpg(self.pid, signal.SIGINT)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the command alone, as a supervisor would."""
        self.processes()
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for the command to end; returns its exit status."""
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"did not stop within {STOP_S} s: {self.log[-_LOG_TAIL:]}"
            ) from None

    def wait_gone(self, but: Collection[str] = ()) -> None:
        """Wait until the last process of the deployment has ended; those named `but` may stay."""

        def left() -> list[str]:
            titles = [_title(process) for process in self.processes().values()]
            return [title for title in titles if title and title not in but]

        wait_until(lambda: not left(), "every process to end", STOP_S, lambda: str(left()))

    def stop(self) -> None:
        """Interrupt the command unless it has ended; it must end well and leave nothing."""
        if self._process.poll() is None:
            self.interrupt()
        self.wait_ended(0)

    def wait_ended(self, status: int) -> None:
        """Wait until the command ends with `status` and its last process is gone."""
        found = self.wait()
        assert found == status, f"exit status {found}: {self.log[-_LOG_TAIL:]}"
        self.wait_gone()
        assert "Traceback" not in self.log, self.log[-_LOG_TAIL:]

    def tell(self) -> None:
        """Write into a failed test's report how the deployment stands, and the end of its log."""
        titles = "".join(f"  {pid} {_title(p)[:160]}\n" for pid, p in self.processes().items())
        status = self._process.poll()
        state = "still runs" if status is None else f"ended with {status}"
        sys.stderr.write(f"The deployment {state}. Its processes:\n{titles}")
        sys.stderr.write(f"The end of its log:\n{self.log[-_LOG_TAIL:]}\n")

    def kill(self) -> None:
        """End whatever is left of it."""
        for process in self.processes().values():
            with suppress(psutil.Error):
                process.kill()
        self._process.wait(STOP_S)
        self._log.close()


def _title(process: psutil.Process) -> str:
    """Its command line; empty once it has ended."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline()).strip()
    return ""


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@contextmanager
def serving(model: Path, *flags: str) -> Iterator[Deployment]:
    """A deployment that is ready; afterwards it is stopped, if the test has not done so."""
    deployment = Deployment(model, *flags)
    try:
        deployment.wait_ready()
        yield deployment
        deployment.stop()
    except BaseException:
        deployment.tell()
        raise
    finally:
        deployment.kill()


def wait_until(
    condition: Callable[[], bool],
    what: str,
    timeout_s: float,
    detail: Callable[[], str] = lambda: "",
) -> None:
    """Poll a condition; fails with what was waited for, and with `detail`."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}: {detail()}"
        time.sleep(0.05)
