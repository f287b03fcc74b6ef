"""The ranks of a worker as threads of this process."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from twinflow.parallel.ranks.base import OneRank, RankGroup

_DEADLINE_S = 60.0


@dataclass
class Meeting:
    """Where threads leave parts for each other.

    Attributes:
        size: threads that take part.
        collectives: collectives that were completed.
    """

    size: int
    collectives: int = 0
    parts: list[Tensor] = field(init=False)
    barrier: threading.Barrier = field(init=False)
    smaller: "dict[range, Meeting]" = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.parts = [torch.empty(0)] * self.size
        self.barrier = threading.Barrier(self.size, timeout=_DEADLINE_S)

    def exchange(self, rank: int, part: Tensor) -> list[Tensor]:
        """Copies of the parts of all ranks, once all are there."""
        self.parts[rank] = part
        self.barrier.wait()
        shapes = {(tuple(other.shape), other.dtype) for other in self.parts}
        assert len(shapes) == 1, f"ranks disagree about the shape: {shapes}"
        found = [other.clone() for other in self.parts]
        if self.barrier.wait() == 0:
            self.collectives += 1
        return found

    def among(self, members: range) -> "Meeting":
        """The meeting of some of the threads, always the same one."""
        with self.lock:
            return self.smaller.setdefault(members, Meeting(len(members)))

    def abort(self) -> None:
        """Wake everybody who waits, with an error."""
        self.barrier.abort()
        with self.lock:
            for meeting in self.smaller.values():
                meeting.abort()


class ThreadRanks(RankGroup):
    """One thread's view of a meeting."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__(rank, meeting.size)
        self.meeting = meeting

    def all_reduce(self, part: Tensor) -> Tensor:
        """See the base class."""
        first, *others = self.meeting.exchange(self.rank, part)
        total = first.float() if first.itemsize < 4 else first
        for other in others:
            total += other
        return total.to(part.dtype)

    def all_gather(self, part: Tensor) -> Tensor:
        """See the base class."""
        return torch.cat(self.meeting.exchange(self.rank, part), dim=1)

    def neighbours(self, size: int) -> RankGroup:
        """See the base class."""
        members = self._neighbours(size)
        if size == 1:
            return OneRank()
        return ThreadRanks(self.rank - members.start, self.meeting.among(members))


R = TypeVar("R")


def run_ranks(size: int, work: Callable[[RankGroup], R]) -> list[R]:
    """What each of `size` ranks returns from `work`; the first error of any rank is raised."""
    meeting = Meeting(size)

    def run(rank: int) -> R:
        try:
            return work(ThreadRanks(rank, meeting))
        except BaseException:
            meeting.abort()  # the others must not wait for this one
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]
