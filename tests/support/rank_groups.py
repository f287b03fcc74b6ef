"""All ranks of a group in one process, each on a thread of its own."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from twinflow.parallel.links.store import MemoryStore
from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.parallel.ranks.config import RanksConfig
from twinflow.parallel.ranks.distributed import SLICED_FROM_BYTES, DistributedRanks

T = TypeVar("T")
WORKER = "decode-0"


class ThreadedRanks:
    """A connected group; made by `grouped`."""

    def __init__(self, ranks: Sequence[DistributedRanks], pool: ThreadPoolExecutor) -> None:
        self.ranks = ranks
        self.pool = pool

    def __getitem__(self, rank: int) -> DistributedRanks:
        return self.ranks[rank]

    def all(self, call: Callable[[DistributedRanks], T]) -> list[T]:
        """Call something on every rank at the same time; the results by rank."""
        return [future.result() for future in [self.pool.submit(call, r) for r in self.ranks]]

    def all_reduce(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The sums of copies of the parts, by rank."""
        return self.all(lambda ranks: ranks.all_reduce(parts[ranks.rank].clone()))


def ranks_config(rank: int, size: int, **changes: Any) -> RanksConfig:
    """A rank on the CPU."""
    settings: dict[str, Any] = {"worker": WORKER, "connect_s": 20.0, "deadline_s": 20.0}
    return RanksConfig(rank=rank, size=size, **(settings | changes))


@contextmanager
def grouped(
    size: int, *, sliced_from_bytes: int = SLICED_FROM_BYTES, **changes: Any
) -> Iterator[ThreadedRanks]:
    """A group of `size` ranks, closed at the end; `changes` are fields of `RanksConfig`."""
    store = MemoryStore("ranks")

    def connect(rank: int) -> DistributedRanks:
        config = ranks_config(rank, size, **changes)
        return DistributedRanks.connect(config, store, sliced_from_bytes)

    with ThreadPoolExecutor(size) as pool:
        ranks = list(pool.map(connect, range(size)))
        try:
            yield ThreadedRanks(ranks, pool)
        finally:
            for one in ranks:
                one.close()
    store.close()


def run_grouped(size: int, work: Callable[[RankGroup], T]) -> list[T]:
    """What each of `size` ranks returns from `work`, connected over gloo if there are several."""
    if size == 1:
        return [work(OneRank())]
    # Ranks build models of their own, and the machine may do much else.
    with grouped(size, connect_s=60.0, deadline_s=120.0) as group:
        return group.all(work)


def uneven_parts(
    size: int, rows: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    """Parts whose sum depends on the order of the additions."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-4, 5, (size, rows, width), generator=generator)
    values = torch.randn((size, rows, width), generator=generator) * scales
    return list(values.to(dtype))


def sum_in_order(parts: Sequence[Tensor]) -> Tensor:
    """What `all_reduce` must return, written out."""
    total = parts[0].double() if parts[0].dtype is torch.float64 else parts[0].float()
    for part in parts[1:]:
        total = total + part
    return total.to(parts[0].dtype)
