"""Both ways of adding up parts of ranks against gloo's all-reduce: `python -m benchmarks.ranks`.

Starts the ranks as processes of this machine. In each round every arm adds up a part of the same
size once, one arm after the other, so that what else the machine does hits all of them alike. A
time is that of the slowest rank. Prints a table: median and 10th to 90th percentile in
microseconds, and the ratio of the medians to gloo's.

The arms do not give the same bits: gloo's order of additions depends on an element's place. That
is why twinflow does not use it, whatever this table says.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]  # not in the stubs

from benchmarks.load.machine import machine_facts
from benchmarks.load.stats import median, percentile
from benchmarks.rank_processes import connect, run_ranks
from twinflow.parallel.links.deadline import Deadline
from twinflow.parallel.links.groups.gloo import connect_gloo

ARMS = ("gloo", "direct", "sliced")
_NEVER = 1 << 60
_PATIENCE_S = 60.0
_WARM_UP = 5


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
    found = run_ranks(size, _rank, kibs, rounds)
    return {
        kib: {
            arm: [max(rounds) for rounds in zip(*(one[kib, arm] for one in found), strict=True)]
            for arm in ARMS
            if (kib, arm) in found[0]
        }
        for kib in kibs
    }


def _rank(
    rank: int, size: int, folder: Path, kibs: Sequence[int], rounds: int
) -> dict[tuple[int, str], list[float]]:
    torch.set_num_threads(1)
    arms = _arms(rank, size, folder)
    # Ranks that began at different times would measure each other's delay.
    apart = connect(rank, size, folder / "apart", _NEVER)
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
    apart.all_reduce(torch.ones(1, 1))
    return found


def _arms(rank: int, size: int, folder: Path) -> dict[str, Callable[[torch.Tensor], object]]:
    store = FileStore(str(folder / "gloo"), size)
    gloo: dist.ProcessGroup = connect_gloo(  # type: ignore[assignment]  # typed as what links use
        store, rank, size, "127.0.0.1", Deadline.after(_PATIENCE_S)
    )
    direct = connect(rank, size, folder / "direct", _NEVER)
    arms: dict[str, Callable[[torch.Tensor], object]] = {
        "gloo": lambda part: gloo.allreduce([part]).wait(),
        "direct": direct.all_reduce,
    }
    if size > 2:  # parts of two ranks are never sliced
        arms["sliced"] = connect(rank, size, folder / "sliced", 0).all_reduce
    return arms


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
