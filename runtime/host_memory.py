"""How much memory of the host this process may still take. Measures; decides nothing."""

import os
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class MemoryShare:
    """A part of a host's memory that was set aside for one of several processes.

    Processes that start together and each look at what is free would all count the same bytes as
    theirs.

    Attributes:
        free: bytes that the host had free before any of them started.
        parts: equal parts that they are cut into.
    """

    free: int
    parts: int

    @property
    def size(self) -> int:
        """Bytes of one part."""
        return self.free // self.parts

    def __str__(self) -> str:
        """As error messages name it."""
        part = f"1/{self.parts} of " if self.parts > 1 else ""
        return f"{part}the {self.free / (1 << 30):.2f} GiB that the host had free"


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that could be allocated now without swapping, within the limit of the container.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    bounds = [_of_machine(root / "proc/meminfo"), _of_container(root / "sys/fs/cgroup")]
    return min(bound for bound in bounds if bound is not None)


def taken_memory(root: Path = _ROOT) -> int:
    """Bytes of memory that this process has taken; 0 where the kernel does not tell.

    Args:
        root: where `proc` is mounted.
    """
    pages = _lines(root / "proc/self/statm")
    return int(pages[0].split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages else 0


def _of_machine(meminfo: Path) -> int:
    """What the kernel could free for the asking; where it does not tell, all there is."""
    for line in _lines(meminfo):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _of_container(cgroup: Path) -> int | None:
    """What is left of the control group's limit (cgroup v2), files that it caches not counted."""
    limit, used = _lines(cgroup / "memory.max"), _lines(cgroup / "memory.current")
    if not limit or not used or limit[0] == "max":
        return None
    cached = [line for line in _lines(cgroup / "memory.stat") if line.startswith("inactive_file ")]
    idle = int(cached[0].split()[1]) if cached else 0
    return max(0, int(limit[0]) - int(used[0]) + idle)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").split("\n") if path.is_file() else []
