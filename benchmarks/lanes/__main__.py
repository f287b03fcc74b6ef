"""Two lanes against one: `python -m benchmarks.lanes simulated`, and `... real MODEL`.

    simulated  Nexus's arms with Llama 3.1 8B in bfloat16 on one H100, as it is described in
               `runtime/cost/devices`. Virtual time: the outcome depends on the seeds alone. The
               fixed split, and the deadline of chunks that are cut by one, are the best there are,
               found with a seed of their own: the shortest mean TTFT among those that keep p99 TBT
               below 0.55 of the base arm's.
    real       one lane and two with a model on this machine's cores, arms taking turns. A check of
               the mechanism, at lengths that suit the machine (`--length-scale`).

Short conversations and long documents arrive at random. Loads are parts of what the base arm,
chunked prefill with serve's defaults, can serve. `--out` gets report.md (the table), report.json
and report.png.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.lanes import real, simulated
from benchmarks.lanes.arms import BASE, ONE_LANE, Arm, deadline_aware, divided, fixed
from benchmarks.lanes.report import Cell, as_json, as_markdown, draw, make_cell
from benchmarks.lanes.simulated import Figures
from benchmarks.reporting import Report, machine_line

TBT_GOAL = 0.55
_TUNING_SEED = 1000
_TUNING_LOAD = 0.9
# Deadlines that are tried, as parts of the base arm's p99 TBT.
_DEADLINES = (0.2, 0.3, 0.4, 0.5, 0.6)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        capacity: requests per second that the base arm can serve.
        arms: runs of each arm, by name: from a rate and a seed to figures; the base arm's first.
        where: hardware, in a sentence.
    """

    capacity: float
    arms: dict[str, Callable[[float, int], Figures]]
    where: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run every arm at every load with every seed, print the table, write the report."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    plan: Plan = args.plan(args)
    found = [cell for load in args.loads for cell in _at(plan, load, args.seeds)]
    base = next(iter(plan.arms))
    heading = (
        f"`python -m benchmarks.lanes {shlex.join(arguments)}`\n\n"
        f"{plan.where} {base} serves {plan.capacity:.2f} requests/s at most; {args.requests} "
        f"requests a run, medians over {args.seeds} seeds, ratios with their range.\n"
    )
    figures = {"cells": as_json(found)}
    Report(heading, as_markdown(found), figures, lambda: draw(found)).publish(args.out)
    return 0


def plan_simulated(args: argparse.Namespace) -> Plan:
    """Every arm on the described device."""
    device, requests = simulated.Device(), args.requests
    capacity = device.capacity(BASE, requests, _TUNING_SEED)
    grid, tuning = device.grid, Tuning(device, requests, _TUNING_LOAD * capacity)
    split = grid.splits[tuning.best([fixed(grid, part, "fcfs") for part in grid.splits])]
    deadlines = [deadline_aware(part * tuning.base.tbt_p99 / 1000.0) for part in _DEADLINES]
    tuned = deadlines[tuning.best(deadlines)]
    two = [fixed(grid, split, "fcfs"), *(divided(grid, order) for order in ("fcfs", "spf"))]
    arms = (*ONE_LANE, tuned, *two, fixed(grid, split, "spf"))

    def runs(arm: Arm) -> Callable[[float, int], Figures]:
        return lambda rate, seed: device.run(arm, requests, rate, seed)

    return Plan(capacity, {arm.name: runs(arm) for arm in arms}, "Virtual time.")


def plan_real(args: argparse.Namespace) -> Plan:
    """One lane and two on this machine."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    bench = real.Bench(args.model, cores, args.length_scale, args.requests)

    def runs(arm: real.RealArm) -> Callable[[float, int], Figures]:
        return lambda rate, seed: bench.run(arm, bench.arrivals(rate, seed))

    where = (
        f"Wall clock on {machine_line()}; {len(cores)} cores used; "
        f"{args.model.name}, lengths and chunks times {args.length_scale:g}."
    )
    capacity = bench.capacity(_TUNING_SEED)
    return Plan(capacity, {arm.name: runs(arm) for arm in real.REAL_ARMS}, where)


class Tuning:
    """Finds the best of several arms, at a rate and with a seed that no table shows.

    Args:
        device: what they run on.
        requests: of each run.
        rate: requests per second.

    Attributes:
        base: figures of the base arm.
    """

    def __init__(self, device: simulated.Device, requests: int, rate: float) -> None:
        self._run = partial(device.run, requests=requests, rate=rate, seed=_TUNING_SEED)
        self.base = self._run(BASE)

    def best(self, arms: Sequence[Arm]) -> int:
        """The index of the arm with the shortest mean TTFT, among those whose p99 TBT is good."""
        tried = [self._run(arm) for arm in arms]
        good = [i for i, found in enumerate(tried) if found.tbt_p99 <= TBT_GOAL * self.base.tbt_p99]
        return min(good or range(len(arms)), key=lambda index: tried[index].ttft_mean)


def _at(plan: Plan, load: float, seeds: int) -> list[Cell]:
    runs: dict[str, list[Figures]] = {name: [] for name in plan.arms}
    for seed in range(seeds):
        for name, run in plan.arms.items():
            sys.stderr.write(f"load {load:.0%}, seed {seed}: {name}\n")
            sys.stderr.flush()
            runs[name].append(run(load * plan.capacity, seed))
    base = next(iter(runs.values()))
    return [make_cell(name, load, found, base) for name, found in runs.items()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Two lanes of one device against one.")
    commands = parser.add_subparsers(required=True)
    on_device = commands.add_parser("simulated", help="on a described H100")
    on_device.set_defaults(plan=plan_simulated)
    on_cores = commands.add_parser("real", help="on this machine's cores")
    on_cores.set_defaults(plan=plan_real)
    on_cores.add_argument("model", type=Path, help="a checkpoint's directory")
    on_cores.add_argument("--length-scale", type=float, default=0.125, help="(0.125)")
    for command, requests in ((on_device, 1500), (on_cores, 40)):
        add = command.add_argument
        add("--loads", type=float, nargs="+", default=[0.7, 0.8, 0.9])
        add("--requests", type=int, default=requests, help=f"of each run ({requests})")
        add("--seeds", type=int, default=3, help="runs of each arm and load (3)")
        add("--out", type=Path, metavar="DIR", help="where the report is written")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
