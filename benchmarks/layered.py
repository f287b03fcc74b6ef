"""Prompts in chunks against prompts in layers: `python -m benchmarks.layered --out DIR`.

Chunked prefill at three sizes, layered prefill, and whole prompts before all decoding serve the
same long prompts, side by side. How many bytes of experts were read is counted where rows are
routed.

    moe       a mixture of experts of random weights, several times the last-level cache; one core
    dense     a model of the same size without a choice
    even      Qwen3-30B-A3B on the shipped H100, simulated; rows choose experts evenly
    skewed    the same with experts as popular as they were measured to be

Lengths are those of arXiv summarisation as published with the paper on layered prefill (arXiv
2510.08055), of which a log-normal fit stands for the file, or those of `--trace`. One core is not
an H100: with `--length-scale` prompts, outputs, chunks, waves and groups all shrink together.

Arrivals are Poisson, at a part of the rate that chunks of 512 reach when all requests come at once.
Time passes only while a step is computed (`benchmarks.replay`); with `--cpu-time` it is the CPU
time of this process, which strangers on the machine hardly lengthen.

Writes report.md (the tables), report.json and report.png. Checks no tokens: tests do.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.layering.arms import BASE, Arm, arms
from benchmarks.layering.report import SubjectReport, draw
from benchmarks.layering.rounds import full_rate, one_round
from benchmarks.layering.subjects import Subject, subjects
from benchmarks.reporting import Report, machine_line
from twinflow.cluster.simulator.lengths import Lengths
from twinflow.cluster.simulator.traces import read_trace
from twinflow.cluster.simulator.workload import Workload

SUBJECTS = ("moe", "dense", "even", "skewed")
# Tokens of KV at full lengths: what is left of an H100's memory beside Qwen3-30B-A3B.
_KV_TOKENS = 122_880
_CALIBRATION = 6
# Makes the first seeds of rounds differ from the one of the calibration.
_FIRST_SEED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every subject, print the tables, write the report."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parse(arguments)
    torch.set_num_threads(1)
    clock = time.process_time if args.cpu_time else time.perf_counter
    workload = _workload(args)
    chosen = [arm for arm in arms(args.length_scale) if not args.arms or arm.name in args.arms]
    command = f"python -m benchmarks.layered {shlex.join(arguments)}"
    reports: list[SubjectReport] = []
    for subject in subjects(args.subjects, clock):
        for report in _measure(subject, chosen, workload, args):
            if not reports or reports[-1] is not report:
                reports.append(report)
            if args.out is not None:  # after every round: an interrupted session leaves what it had
                _report(reports, _heading(args, command)).write(args.out)
    _report(reports, _heading(args, command)).publish(args.out)
    return 0


def _report(reports: Sequence[SubjectReport], heading: str) -> Report:
    return Report(
        heading,
        "\n".join(report.as_markdown() for report in reports),
        {"subjects": [report.as_json() for report in reports]},
        lambda: draw(reports),
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Prompts in chunks against prompts in layers.")
    add = parser.add_argument
    add("--subjects", nargs="+", choices=SUBJECTS, default=["moe"])
    add("--arms", nargs="+", help="names of schedules [default: all]; the base is needed")
    add("--trace", type=Path, help="lengths instead of the published ones")
    add("--input-tokens", type=Lengths.parse, default=Lengths("lognormal", (8.963, 0.679)))
    add("--output-tokens", type=Lengths.parse, default=Lengths("lognormal", (5.325, 0.507)))
    add("--length-scale", type=float, default=1.0, help="of lengths, chunks, waves and groups")
    add("--requests", type=int, default=24, help="of a round [default: 24]")
    add("--rounds", type=int, default=3, help="[default: 3]")
    add("--load", type=float, default=0.7, help="part of the full rate [default: 0.7]")
    add("--cpu-time", action="store_true", help="this process's CPU time, not the clock's")
    add("--out", type=Path, metavar="DIR", help="where the report is written")
    return parser.parse_args(arguments)


def _workload(args: argparse.Namespace) -> Workload:
    drawn = args.trace is None
    return Workload(
        args.requests,
        shapes=() if drawn else read_trace(args.trace),
        input_tokens=args.input_tokens if drawn else None,
        output_tokens=args.output_tokens if drawn else None,
        rate=1.0,
        length_scale=args.length_scale,
        max_tokens=_kv_tokens(args) // 2,
    )


def _kv_tokens(args: argparse.Namespace) -> int:
    return int(_KV_TOKENS * args.length_scale)


def _measure(
    subject: Subject, chosen: Sequence[Arm], workload: Workload, args: argparse.Namespace
) -> Iterator[SubjectReport]:
    """Measure; the same report after each round, which has one more round then."""
    room = _kv_tokens(args)
    base = next(arm for arm in chosen if arm.name == BASE)
    few = replace(workload, requests=min(args.requests, _CALIBRATION))
    rate = args.load * full_rate(subject, base, list(few.arrivals(0)), room)
    report = SubjectReport(subject.name, subject.expert_bytes, rate, [])
    for number in range(args.rounds):
        arrivals = list(replace(workload, rate=rate).arrivals(_FIRST_SEED + number))
        report.rounds.append(one_round(subject, chosen, arrivals, room))
        sys.stderr.write(f"{subject.name}: round {number + 1} of {args.rounds}\n")
        sys.stderr.flush()
        yield report


def _heading(args: argparse.Namespace, command: str) -> str:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    lengths = args.trace.name if args.trace else f"{args.input_tokens} / {args.output_tokens}"
    return (
        f"`{command}`\n\n{machine_line()}, one thread; "
        f"load at the end {load}. Lengths {lengths}, times {args.length_scale:g}; "
        f"up to {args.rounds} rounds of {args.requests} requests; "
        f"{'CPU time' if args.cpu_time else 'wall clock'}; medians with ranges.\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
