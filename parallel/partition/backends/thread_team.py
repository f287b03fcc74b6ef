"""A thread and the team that computes for it: which cores they run on, and how many they are.

Linux only: elsewhere threads cannot be pinned, and `TorchTeams` says so.
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from twinflow.protos.errors import ConfigError

_TASKS = Path("/proc/self/task")
# Elements that one thread takes of an elementwise operation before torch lets another one help.
_GRAIN = 1 << 15


class TeamSystem(Protocol):
    """What the system does for a team; all of it is asked from the team's own first thread."""

    def name(self) -> str:
        """Give the calling thread, and every one that it will make, a name nobody else has."""
        ...

    def members(self, name: str) -> Sequence[int]:
        """The threads of that name, the first one included."""
        ...

    def pin(self, member: int, cores: Sequence[int]) -> None:
        """Keep a thread on cores; one that has ended is passed over.

        Raises:
            OSError: the system refuses.
        """
        ...

    def cores(self, member: int) -> frozenset[int]:
        """Where a thread may run."""
        ...

    def size(self) -> int:
        """With how many threads the calling one computes."""
        ...

    def set_size(self, threads: int) -> None:
        """Compute with so many threads from now on, when the calling one computes, or one that has
        not computed yet."""
        ...

    def compute(self, threads: int) -> None:
        """Compute something for which so many threads are used, if there may be so many."""
        ...


class ThreadTeam:
    """The calling thread and those that compute with it.

    Args:
        system: see above.
    """

    def __init__(self, system: TeamSystem) -> None:
        self._system = system
        self._name = system.name()
        self._cores: tuple[int, ...] | None = None

    def move(self, cores: tuple[int, ...]) -> None:
        """Run on cores, with as many threads.

        Raises:
            ConfigError: the system refuses.
        """
        if cores == self._cores:
            return
        try:
            for member in self._system.members(self._name):
                self._system.pin(member, cores)
        except OSError as error:
            raise ConfigError(f"cores {_listing(cores)}: {error.strerror or error}") from error
        self._system.set_size(len(cores))
        self._cores = cores

    def verify(self, cores: tuple[int, ...]) -> None:
        """See what has come of it, by computing something.

        Raises:
            ConfigError: a thread of the team may run elsewhere, or there are too few.
        """
        self._system.compute(len(cores))
        members = self._system.members(self._name)
        if len(members) < len(cores):
            raise ConfigError(f"{len(members)} threads computed where {len(cores)} were asked for")
        for member in members:
            found = self._system.cores(member)
            if found != frozenset(cores):
                raise ConfigError(
                    f"a thread that was put on cores {_listing(cores)} runs on {_listing(found)}"
                )


class TorchTeams:
    """Threads of torch's OpenMP teams; a `TeamSystem`."""

    def name(self) -> str:
        """See `TeamSystem.name`: the number of a thread is nobody else's."""
        number = threading.get_native_id()
        name = f"lane-{number}"
        try:
            (_TASKS / str(number) / "comm").write_text(name)
        except OSError as error:
            raise ConfigError(f"threads cannot be told apart here: {error}") from error
        return name

    def members(self, name: str) -> list[int]:
        """See `TeamSystem.members`."""
        return [int(task.name) for task in _TASKS.iterdir() if _comm(task) == name]

    def pin(self, member: int, cores: Sequence[int]) -> None:
        """See `TeamSystem.pin`."""
        try:
            os.sched_setaffinity(member, cores)
        except ProcessLookupError:
            return

    def cores(self, member: int) -> frozenset[int]:
        """See `TeamSystem.cores`."""
        return frozenset(os.sched_getaffinity(member))

    def size(self) -> int:
        """See `TeamSystem.size`."""
        return torch.get_num_threads()

    def set_size(self, threads: int) -> None:
        """See `TeamSystem.set_size`: torch has one number for all threads that are new to it."""
        torch.set_num_threads(threads)

    def compute(self, threads: int) -> None:
        """See `TeamSystem.compute`."""
        torch.empty(2 * threads * _GRAIN).fill_(1.0)


def _comm(task: Path) -> str:
    try:
        return (task / "comm").read_text().strip()
    except OSError:
        return ""  # it has ended meanwhile


def _listing(cores: Sequence[int] | frozenset[int]) -> str:
    return ",".join(map(str, sorted(cores)))
