"""The processes of a deployment, from outside: Linux's /proc. Reads, and sends signals."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_MODULE = "twinflow.cluster.launch.local_process"
_ENDED = frozenset("ZX")
_TCP_LISTENS = "0A"


@dataclass(frozen=True, slots=True)
class Process:
    """One process.

    Attributes:
        pid: of it.
        parent: its parent's.
        name: of the service that it runs; empty for any other process.
    """

    pid: int
    parent: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds of the machine.

    Attributes:
        rss_mib: resident memory.
        fds: open file descriptors.
        threads: of the process.
    """

    rss_mib: float
    fds: int
    threads: int


def family(pid: int) -> dict[int, Process]:
    """A process and everything that descends from it, those that have ended left out."""
    found = {process.pid: process for process in _living()}
    members = {pid} & found.keys()
    while more := {p.pid for p in found.values() if p.parent in members} - members:
        members |= more
    return {pid: found[pid] for pid in members}


def is_alive(pid: int) -> bool:
    """Whether a process has not ended."""
    return _read(pid) is not None


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; nothing happens if the process has ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class Throttle:
    """Gives a process a share of the time of a processor, by stopping it again and again.

    What a quota of a control group does, without the privileges that one needs. It begins at once.

    Args:
        pid: of the process.
        share: of the time in which it may run, in [0, 1].
        period_s: of one round.
    """

    def __init__(self, pid: int, share: float, period_s: float = 0.1) -> None:
        self._pid = pid
        self._runs_s = share * period_s
        self._stands_s = period_s - self._runs_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._alternate, name="throttle", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let it run; returns once it may."""
        self._over.set()
        self._thread.join()

    def _alternate(self) -> None:
        while not self._over.is_set():
            send(self._pid, signal.SIGSTOP)
            self._over.wait(self._stands_s)
            send(self._pid, signal.SIGCONT)
            self._over.wait(self._runs_s)


def footprint(pid: int) -> Footprint | None:
    """What a process holds; None if it has ended."""
    try:
        status = (_PROC / str(pid) / "status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return Footprint(
            rss_mib=int(fields["VmRSS"].split()[0]) / 1024,
            fds=len(os.listdir(_PROC / str(pid) / "fd")),
            threads=int(fields["Threads"]),
        )
    except (OSError, KeyError):
        return None


def listening_ports(pid: int) -> list[int]:
    """TCP ports that a process listens on."""
    sockets = set()
    with suppress(OSError):
        for fd in (_PROC / str(pid) / "fd").iterdir():
            with suppress(OSError):
                sockets.add(str(fd.readlink()))
    tables = [_PROC / str(pid) / "net" / name for name in ("tcp", "tcp6")]
    lines = [line for table in tables for line in table.read_text().splitlines()[1:]]
    rows = [line.split() for line in lines]
    return sorted(
        int(row[1].rpartition(":")[2], 16)
        for row in rows
        if row[3] == _TCP_LISTENS and f"socket:[{row[9]}]" in sockets
    )


def _living() -> Iterator[Process]:
    for entry in os.listdir(_PROC):
        if entry.isdecimal() and (process := _read(int(entry))) is not None:
            yield process


def _read(pid: int) -> Process | None:
    try:
        # The name in parentheses may hold anything, parentheses too.
        state, parent = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[:2]
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if state in _ENDED:
        return None
    return Process(pid, int(parent), _service(pid) if _MODULE in words else "")


def _service(pid: int) -> str:
    """What a process of the launcher calls itself; nothing until it knows."""
    with suppress(OSError):
        name = (_PROC / str(pid) / "comm").read_text().strip()
        return "" if name.startswith("python") else name
    return ""
