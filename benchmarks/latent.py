"""Decode attention to latents in the layouts there are: `python -m benchmarks.latent --out DIR`.

Two ranks attend as in a decode step of one layer, once in each round and layout, one layout after
the other. A step is what lies between a rank's absorbed queries and its weighted means of latents:
attention to what the rank holds, and for `dcp` the exchange of queries and of partial results. What
all layouts do alike, the projections and the sum over ranks behind them, is left out. `tpla exact`
is one of the layers that a transform may make exact: its step has the exchange of scores.

    CPU, or two CUDA devices or more    two processes over gloo or NCCL
    one CUDA device                     the kernel of rank 0 alone; exchanges are not measured

The kernel alone is timed too: on a CPU in seconds of its thread, which do not count who else wants
the core, on a device between two synchronisations. Ratios are taken round by round.

Writes report.md (the table), report.json and report.png. Checks no results: tests do.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.latents.arms import Sizes, Timing, fence, make_steps, time_arms
from benchmarks.latents.report import Cell, as_json, as_markdown, cells, draw
from benchmarks.rank_processes import connect, run_ranks
from benchmarks.reporting import Report, machine_line
from twinflow.parallel.ranks.base import RankGroup, Seat

RANKS = 2

# Cached bytes of each arm, and timings of each arm.
Found = tuple[dict[str, int], dict[str, list[Timing]]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, in this order.

    Attributes:
        sizes: one after the other.
        rounds: of each.
        cuda: on CUDA devices.
        alone: the kernel of one rank.
    """

    sizes: tuple[Sizes, ...]
    rounds: int
    cuda: bool
    alone: bool

    def device(self, rank: int) -> torch.device:
        """Of a rank."""
        return torch.device("cuda", rank) if self.cuda else torch.device("cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every size, print the table, write the report."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    plan = Plan(
        sizes=tuple(
            Sizes(heads, context, args.batch, dtype=args.dtype)
            for heads in args.heads
            for context in args.contexts
        ),
        rounds=args.rounds,
        cuda=args.device == "cuda",
        alone=args.device == "cuda" and torch.cuda.device_count() < RANKS,
    )
    found = _measure(plan)
    heading = _heading(plan, f"python -m benchmarks.latent {shlex.join(arguments)}")
    figures = {"cells": as_json(found)}
    Report(heading, as_markdown(found), figures, lambda: draw(found)).publish(args.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Decode attention to latents by layout.")
    parser.add_argument(
        "--heads", type=int, nargs="+", default=[16], help="of all ranks together (16)"
    )
    parser.add_argument(
        "--contexts",
        type=int,
        nargs="+",
        default=[1 << power for power in range(10, 16)],
        metavar="TOKENS",
        help="cached tokens of each sequence (1024 to 32768)",
    )
    parser.add_argument("--batch", type=int, default=4, help="sequences (4)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"]
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the report is written")
    return parser


def _measure(plan: Plan) -> list[Cell]:
    ranks = [_time(plan, Seat(0, RANKS))] if plan.alone else run_ranks(RANKS, _rank, plan)
    result: list[Cell] = []
    for sizes, *found in zip(plan.sizes, *ranks, strict=True):
        cached = {arm: max(bytes_of[arm] for bytes_of, _ in found) for arm in found[0][0]}
        result += cells(sizes, cached, [timings for _, timings in found])
    return result


def _rank(rank: int, size: int, folder: Path, plan: Plan) -> list[Found]:
    torch.set_num_threads(1)
    return _time(plan, connect(rank, size, folder / "ranks", device=str(plan.device(rank))))


def _time(plan: Plan, ranks: RankGroup) -> list[Found]:
    device, found = plan.device(ranks.rank), []
    for number, sizes in enumerate(plan.sizes):
        if ranks.rank == 0:
            at = f"{number + 1}/{len(plan.sizes)}"
            sys.stderr.write(f"{at}: {sizes.heads} heads, {sizes.context} tokens of context\n")
            sys.stderr.flush()
        with torch.inference_mode():
            steps, cached = make_steps(sizes, ranks, device, alone=plan.alone)
            wait = (lambda: None) if plan.alone else fence(ranks, device)
            found.append((cached, time_arms(steps, plan.rounds, wait)))
    return found


def _heading(plan: Plan, command: str) -> str:
    first, where = plan.sizes[0], machine_line()
    if plan.cuda:
        where = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {where}"
    what = "the kernel of one rank alone" if plan.alone else f"{RANKS} ranks, the slower one"
    return (
        f"`{command}`\n\n"
        f"{where}. {what}; "
        f"latents of {first.kv_rank} + {first.rope_dim} in {first.dtype}, blocks of "
        f"{first.block_size}, {first.batch} sequences; {plan.rounds} rounds, medians with ranges.\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
