"""What a measurement ran on, and who else used the machine meanwhile.

Reads /proc; where there is none the shares are unknown and said to be. CPU time of the server is
told from that of strangers only if its process ids are given: the sum over their process trees.
"""

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
FOREIGN_LIMIT = 0.05
_IDLE, _IOWAIT, _STEAL, _COUNTED = 3, 4, 7, 8


@dataclass(frozen=True, slots=True)
class CpuShares:
    """Shares of all cores' time during a run, 0 to 1.

    Attributes:
        generator: this process.
        server: the process trees given as the server's; None if none was given.
        others: every other process; includes the server if its processes were not given.
        steal: taken by other virtual machines of the host.
    """

    generator: float
    server: float | None
    others: float
    steal: float

    @property
    def noisy(self) -> bool:
        """Whether strangers took so much that the run should be repeated.

        Where the server is not told from strangers only steal can be judged.
        """
        known = self.server is not None
        return self.steal > FOREIGN_LIMIT or (known and self.others > FOREIGN_LIMIT)

    def __str__(self) -> str:
        parts = {
            "generator": self.generator,
            "server": self.server,
            "others, server included," if self.server is None else "others": self.others,
            "steal": self.steal,
        }
        return ", ".join(
            f"{name} {share:.0%}" for name, share in parts.items() if share is not None
        )


@dataclass(frozen=True, slots=True)
class CpuSample:
    """CPU seconds since boot, summed over all cores, and of the processes of interest."""

    total_s: float
    busy_s: float
    steal_s: float
    generator_s: float
    server_s: float


def machine_facts(proc: Path = PROC) -> dict[str, str | int | list[int]]:
    """CPU model, cores, memory, kernel and Python, and the cores the generator may use."""
    facts: dict[str, str | int | list[int]] = {
        "cpu": _field(proc / "cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": os.cpu_count() or 0,
        "memory": _field(proc / "meminfo", "MemTotal") or "unknown",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    if hasattr(os, "sched_getaffinity"):
        facts["generator_cores"] = sorted(os.sched_getaffinity(0))
    return facts


def _field(path: Path, name: str) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(values, "")


def machine_cpu(stat: str, ticks_per_s: int) -> tuple[float, float, float]:
    """Total, busy and stolen seconds from the text of /proc/stat."""
    fields = [int(value) for value in stat.splitlines()[0].split()[1 : 1 + _COUNTED]]
    busy = sum(fields) - fields[_IDLE] - fields[_IOWAIT] - fields[_STEAL]
    return sum(fields) / ticks_per_s, busy / ticks_per_s, fields[_STEAL] / ticks_per_s


def process_cpu(stat: str, ticks_per_s: int) -> tuple[int, float]:
    """Parent id and CPU seconds, waited-for children included, from a /proc/<pid>/stat."""
    # The command's name may hold blanks and parentheses: fields count from the last one.
    fields = stat.rpartition(")")[2].split()
    return int(fields[1]), sum(int(value) for value in fields[11:15]) / ticks_per_s


def tree_cpu(pids: Sequence[int], proc: Path, ticks_per_s: int) -> float:
    """CPU seconds of the processes and all their descendants."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for entry in proc.glob("[0-9]*/stat"):
        try:
            parent, used = process_cpu(entry.read_text(encoding="utf-8"), ticks_per_s)
        except OSError:  # ended since it was listed
            continue
        parents[int(entry.parent.name)], seconds[int(entry.parent.name)] = parent, used
    return sum(used for pid, used in seconds.items() if _descends(pid, set(pids), parents))


def _descends(pid: int, roots: set[int], parents: dict[int, int]) -> bool:
    while pid in parents:
        if pid in roots:
            return True
        pid = parents[pid]
    return False


class CpuMeter:
    """Measures CPU shares between two points in time.

    Args:
        server_pids: roots of the server's process trees; empty if unknown or elsewhere.
        proc: the proc file system.
    """

    def __init__(self, server_pids: Sequence[int] = (), proc: Path = PROC) -> None:
        self._pids = server_pids
        self._proc = proc
        self._before: CpuSample | None = None

    def start(self) -> None:
        """Take the first sample."""
        self._before = self._sample()

    def stop(self) -> CpuShares | None:
        """Shares since `start`; None where /proc/stat cannot be read or no time has passed."""
        before, after = self._before, self._sample()
        if before is None or after is None or after.total_s <= before.total_s:
            return None
        total = after.total_s - before.total_s
        generator = after.generator_s - before.generator_s
        server = after.server_s - before.server_s
        strangers = after.busy_s - before.busy_s - generator - server
        return CpuShares(
            generator=generator / total,
            server=server / total if self._pids else None,
            others=max(0.0, strangers / total),
            steal=(after.steal_s - before.steal_s) / total,
        )

    def _sample(self) -> CpuSample | None:
        ticks = os.sysconf("SC_CLK_TCK")
        try:
            total, busy, steal = machine_cpu((self._proc / "stat").read_text("utf-8"), ticks)
        except OSError:
            return None
        server = tree_cpu(self._pids, self._proc, ticks) if self._pids else 0.0
        return CpuSample(total, busy, steal, time.process_time(), server)
