"""Ranks that are threads of one process, for measurements and tests that need no speed.

They compute what ranks in processes of their own compute, bit by bit, with the same code on top:
parts are added up in the order of the ranks.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.protos.errors import RankLost

# How long a thread waits for another one: as long as one may load before the other begins.
_DEADLINE_S = 600.0

R = TypeVar("R")


@dataclass
class Meeting:
    """Where threads leave parts for each other.

    Attributes:
        size: threads that take part.
    """

    size: int
    _parts: list[Tensor] = field(init=False)
    _barrier: threading.Barrier = field(init=False)
    _smaller: "dict[range, Meeting]" = field(init=False, default_factory=dict)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._parts = [torch.empty(0)] * self.size
        self._barrier = threading.Barrier(self.size, timeout=_DEADLINE_S)

    def exchange(self, rank: int, part: Tensor) -> list[Tensor]:
        """Copies of the parts of all ranks, once all are there.

        Raises:
            RankLost: a thread has failed, or did not come.
            ValueError: the parts differ in shape or dtype.
        """
        self._parts[rank] = part
        self._await(rank)
        kinds = {(tuple(other.shape), other.dtype) for other in self._parts}
        if len(kinds) > 1:
            raise ValueError(f"ranks disagree about the shape: {kinds}")
        found = [other.clone() for other in self._parts]
        self._await(rank)  # nobody overwrites a part before all have copied it
        return found

    def among(self, members: range) -> "Meeting":
        """The meeting of some of the threads, always the same one."""
        with self._lock:
            meeting = self._smaller.setdefault(members, Meeting(len(members)))
            if self._barrier.broken:
                meeting.abort()
            return meeting

    def abort(self) -> None:
        """Wake everybody who waits, with an error."""
        self._barrier.abort()
        with self._lock:
            for meeting in self._smaller.values():
                meeting.abort()

    def _await(self, rank: int) -> None:
        try:
            self._barrier.wait()
        except threading.BrokenBarrierError as error:
            raise RankLost(
                f"rank {rank} of {self.size} threads waited for another one, which has failed or "
                f"did not come within {_DEADLINE_S:g} s"
            ) from error


class ThreadRanks(RankGroup):
    """One thread's view of a meeting."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__(rank, meeting.size)
        self._meeting = meeting

    def all_reduce(self, part: Tensor) -> Tensor:
        """See the base class."""
        first, *others = self._meeting.exchange(self.rank, part)
        total = first.float() if first.itemsize < torch.float32.itemsize else first
        for other in others:
            total += other
        return total.to(part.dtype)

    def all_gather(self, part: Tensor) -> Tensor:
        """See the base class."""
        return torch.cat(self._meeting.exchange(self.rank, part), dim=1)

    def broadcast(self, part: Tensor, root: int) -> Tensor:
        """See the base class."""
        return self._meeting.exchange(self.rank, part)[root]

    def neighbours(self, size: int) -> RankGroup:
        """See the base class."""
        members = self._neighbours(size)
        if size == 1:
            return OneRank()
        return ThreadRanks(self.rank - members.start, self._meeting.among(members))


def run_ranks(size: int, work: Callable[[RankGroup], R]) -> list[R]:
    """What each of `size` ranks returns from `work`.

    Raises:
        Exception: the first error of any rank that is not merely the loss of another rank.
    """
    if size == 1:
        return [work(OneRank())]
    meeting = Meeting(size)

    def run(rank: int) -> R:
        try:
            return work(ThreadRanks(rank, meeting))
        except BaseException:  # whatever it is: the others must not wait for this one
            meeting.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, RankLost)):
        raise error
    return [future.result() for future in futures]
