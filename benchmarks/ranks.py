"""Both ways of adding up parts of ranks against gloo's all-reduce: `python -m benchmarks.ranks`.

Starts the ranks as processes of this machine. In each round every arm adds up a part of the same
size once, one arm after the other, so that what else the machine does hits all of them alike. A
time is that of the slowest rank. Prints a table: median and 10th to 90th percentile in
microseconds, and the ratio of the medians to gloo's.

The arms do not give the same bits: gloo's order of additions depends on an element's place. That
is why twinflow does not use it, whatever this table says.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]  # not in the stubs

from benchmarks.load.machine import machine_facts
from benchmarks.load.stats import median, percentile
from twinflow.parallel.links.deadline import Deadline
from twinflow.parallel.links.groups.gloo import connect_gloo
from twinflow.parallel.ranks.config import RanksConfig
from twinflow.parallel.ranks.distributed import DistributedRanks

ARMS = ("gloo", "direct", "sliced")
_NEVER = 1 << 60
_PATIENCE_S = 60.0
_WARM_UP = 5


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


def main() -> int:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description="All-reduce of ranks on CPUs.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument(
        "--kib", type=int, nargs="+", default=[4, 64, 256, 1024, 4096], help="sizes of a part"
    )
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    facts = machine_facts()
    _say(f"{facts['cpu']}, {facts['cores']} cores, torch {torch.__version__}, {args.rounds} rounds")
    _say("\n| ranks | KiB | " + " | ".join(f"{arm} µs" for arm in ARMS) + " | direct | sliced |")
    _say("|---" * (4 + len(ARMS)) + "|")
    for size in args.ranks:
        for kib, times in _measure(size, args.kib, args.rounds).items():
            _say(_row(size, kib, times))
    return 0


def _measure(size: int, kibs: Sequence[int], rounds: int) -> dict[int, dict[str, list[float]]]:
    """Seconds of every round, by KiB and arm."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        queue = context.Queue()
        ranks = [
            context.Process(target=_rank, args=(rank, size, Path(folder), kibs, rounds, queue))
            for rank in range(size)
        ]
        for process in ranks:
            process.start()
        found = [queue.get() for _ in ranks]
        for process in ranks:
            process.join()
    return {
        kib: {
            arm: [max(rounds) for rounds in zip(*(one[kib, arm] for one in found), strict=True)]
            for arm in ARMS
            if (kib, arm) in found[0]
        }
        for kib in kibs
    }


def _rank(
    rank: int, size: int, folder: Path, kibs: Sequence[int], rounds: int, queue: "object"
) -> None:
    torch.set_num_threads(1)
    arms = _arms(rank, size, folder)
    # Ranks that began at different times would measure each other's delay.
    apart = _connect(rank, size, folder / "apart", _NEVER)
    found: dict[tuple[int, str], list[float]] = {}
    for kib in kibs:
        part = torch.ones(1, kib * 256)
        for number in range(_WARM_UP + rounds):
            for name, reduce in arms.items():
                apart.all_reduce(torch.ones(1, 1))
                start = time.perf_counter()
                reduce(part)
                if number >= _WARM_UP:
                    found.setdefault((kib, name), []).append(time.perf_counter() - start)
                part.fill_(1.0)
    queue.put(found)  # type: ignore[attr-defined]  # a queue of multiprocessing has no public type
    apart.all_reduce(torch.ones(1, 1))


def _arms(rank: int, size: int, folder: Path) -> dict[str, Callable[[torch.Tensor], object]]:
    store = FileStore(str(folder / "gloo"), size)
    gloo: dist.ProcessGroup = connect_gloo(  # type: ignore[assignment]  # typed as what links use
        store, rank, size, "127.0.0.1", Deadline.after(_PATIENCE_S)
    )
    direct = _connect(rank, size, folder / "direct", _NEVER)
    arms: dict[str, Callable[[torch.Tensor], object]] = {
        "gloo": lambda part: gloo.allreduce([part]).wait(),
        "direct": direct.all_reduce,
    }
    if size > 2:  # parts of two ranks are never sliced
        arms["sliced"] = _connect(rank, size, folder / "sliced", 0).all_reduce
    return arms


def _connect(rank: int, size: int, store: Path, sliced_from_bytes: int) -> DistributedRanks:
    config = RanksConfig(worker="benchmark", rank=rank, size=size, deadline_s=_PATIENCE_S)
    return DistributedRanks.connect(config, FileBackend(store, size), sliced_from_bytes)


def _row(size: int, kib: int, times: dict[str, list[float]]) -> str:
    cells = [str(size), str(kib)]
    for arm in ARMS:
        if arm not in times:
            cells.append("")
            continue
        ordered = sorted(times[arm])
        low, high = percentile(ordered, 10), percentile(ordered, 90)
        cells.append(f"{median(ordered) * 1e6:.0f} ({low * 1e6:.0f} to {high * 1e6:.0f})")
    base = median(times["gloo"])
    cells += [f"{median(times[arm]) / base:.2f}" if arm in times else "" for arm in ARMS[1:]]
    return "| " + " | ".join(cells) + " |"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
