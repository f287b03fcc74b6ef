"""Ranks as processes of this machine, for what measures them. Measures nothing itself."""

import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]  # not in the stubs

from twinflow.parallel.ranks.config import RanksConfig
from twinflow.parallel.ranks.distributed import SLICED_FROM_BYTES, DistributedRanks

P = ParamSpec("P")
R = TypeVar("R")

_PATIENCE_S = 60.0


class FileBackend:
    """A `StoreBackend` in a file that all ranks can open."""

    def __init__(self, path: Path, size: int) -> None:
        self._store = FileStore(str(path), size)

    def set(self, key: str, value: bytes) -> None:
        # Values are text to the stubs of torch, and empty ones are no values to the store.
        self._store.set(key, "=" + value.hex())

    def get(self, key: str, timeout_s: float) -> bytes | None:
        try:
            self._store.wait([key], timedelta(seconds=timeout_s))
        except dist.DistStoreError:
            return None
        return bytes.fromhex(self._store.get(key)[1:].decode())

    def add(self, key: str, amount: int) -> int:
        return int(self._store.add(key, amount))

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        raise NotImplementedError("gloo does not compare")

    def check(self, keys: Sequence[str]) -> bool:
        return bool(self._store.check(list(keys)))

    def delete(self, key: str) -> bool:
        return bool(self._store.delete_key(key))


def connect(
    rank: int,
    size: int,
    store: Path,
    sliced_from_bytes: int = SLICED_FROM_BYTES,
    device: str = "cpu",
) -> DistributedRanks:
    """Meet the other ranks in a file: over gloo, or over NCCL with a CUDA device."""
    config = RanksConfig(
        worker="benchmark",
        rank=rank,
        size=size,
        backend="gloo" if device == "cpu" else "nccl",
        device=device,
        connect_s=_PATIENCE_S,
        deadline_s=_PATIENCE_S,
    )
    return DistributedRanks.connect(config, FileBackend(store, size), sliced_from_bytes)


def run_ranks(
    size: int, work: Callable[Concatenate[int, int, Path, P], R], *args: P.args, **kwargs: P.kwargs
) -> list[R]:
    """What `work(rank, size, folder, ...)` returns in a process of every rank.

    Args:
        size: ranks.
        work: a function of a module; `folder` is the same for all and lasts until all are done.
        args: for it.
        kwargs: for it.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(size, context) as pool:
        ranks = [pool.submit(work, rank, size, Path(name), *args, **kwargs) for rank in range(size)]
        return [future.result() for future in ranks]
