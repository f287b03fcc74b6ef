"""Nexus's arms in the simulator: `python -m benchmarks.lanes --out DIR`.

Llama 3.1 8B in bfloat16 on one H100, as described in `runtime/cost/devices`; short conversations
and long documents arrive at random. Loads are parts of what the base arm, chunked prefill with
serve's defaults, can serve. The fixed split is the best of the grid, found with a seed of its own:
the shortest mean TTFT among those that keep p99 TBT below 0.55 of the base arm's.

Everything is virtual time: the outcome depends on the seeds, not on the machine. Writes report.md
(the table), report.json and report.png.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.lanes.arms import BASE, ONE_LANE, Arm, divided, fixed
from benchmarks.lanes.report import Cell, as_json, as_markdown, make_cell, save_picture
from benchmarks.lanes.simulated import Device, Figures

TBT_GOAL = 0.55
_TUNING_SEED = 1000
_TUNING_LOAD = 0.9


def main(argv: Sequence[str] | None = None) -> int:
    """Run every arm at every load with every seed, print the table, write the report."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    device = Device()
    capacity = device.capacity(BASE, args.requests, _TUNING_SEED)
    split = best_split(device, args.requests, _TUNING_LOAD * capacity)
    grid = device.grid
    arms = (
        *ONE_LANE,
        fixed(grid, split, "fcfs"),
        divided(grid, "fcfs"),
        divided(grid, "spf"),
        fixed(grid, split, "spf"),
    )
    found = [cell for load in args.loads for cell in _at(device, arms, load, capacity, args)]
    heading = (
        f"`python -m benchmarks.lanes {shlex.join(arguments)}`\n\n"
        f"Virtual time. {BASE.name} serves {capacity:.2f} requests/s at most; {args.requests} "
        f"requests a run, medians over {args.seeds} seeds, ratios with their range.\n"
    )
    text = f"{heading}\n{as_markdown(found)}"
    sys.stdout.write(text)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "report.md").write_text(text, "utf-8")
        report = {"heading": heading.splitlines(), "cells": as_json(found)}
        (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        save_picture(found, args.out / "report.png")
    return 0


def best_split(device: Device, requests: int, rate: float) -> int:
    """Processors for prompts of the best fixed split at a rate."""
    base = device.run(BASE, requests, rate, _TUNING_SEED)
    tried = {
        prefill: device.run(fixed(device.grid, prefill, "fcfs"), requests, rate, _TUNING_SEED)
        for prefill in device.grid.splits
    }
    good = [p for p, found in tried.items() if found.tbt_p99 <= TBT_GOAL * base.tbt_p99]
    return min(good or tried, key=lambda prefill: tried[prefill].ttft_mean)


def _at(
    device: Device, arms: Sequence[Arm], load: float, capacity: float, args: argparse.Namespace
) -> list[Cell]:
    runs: dict[str, list[Figures]] = {arm.name: [] for arm in arms}
    for seed in range(args.seeds):
        for arm in arms:
            sys.stderr.write(f"load {load:.0%}, seed {seed}: {arm.name}\n")
            sys.stderr.flush()
            runs[arm.name].append(device.run(arm, args.requests, load * capacity, seed))
    return [make_cell(name, load, found, runs[BASE.name]) for name, found in runs.items()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Two lanes of one device against one, simulated.")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.7, 0.8, 0.9])
    parser.add_argument("--requests", type=int, default=1500, help="of each run (1500)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm and load (3)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the report is written")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
