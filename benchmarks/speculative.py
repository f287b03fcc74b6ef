"""What guessing tokens is worth: `python -m benchmarks.speculative serve MODEL`, and `... stages`.

    serve   a model with each way to guess, arms taking turns round by round: tokens per pass of the
            target, acceptance by place, where the time of a step goes, TPOT. Prompts are code to be
            continued, text to be copied, pages to be summarised and short questions, from Python's
            own library. The first rounds warm up and do not count: drafters that learn have seen
            them.
    stages  the drafting stage alone on two ranks: layouts and group sizes of EasySpec against
            sequential tensor parallel drafting. Tokens are the same in every layout.

`--out` gets report.md, report.json and report.png. Behind the table of `serve` is a compact one, a
row for each arm: with one concurrency tokens per pass of each task, with several of each task and
concurrency tokens per pass / TPOT to none / share of the time that is not the target's.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.reporting import Report, machine_line
from benchmarks.speculating import stages, tasks
from benchmarks.speculating.arms import NONE, Loaded, arm_names, make_arm, most_tokens
from benchmarks.speculating.report import (
    Cell,
    compact_table,
    draw_serving,
    draw_stages,
    serving_table,
    stage_figures,
    stage_table,
)
from benchmarks.speculating.serving import Bench
from benchmarks.speculating.tasks import TaskSource
from twinflow.runtime.text.tokenizer import Tokenizer

_BLOCK = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the report."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    report: Report = args.run(args, shlex.join(arguments))
    report.publish(args.out)
    return 0


def serve(args: argparse.Namespace, arguments: str) -> Report:
    """Serve the tasks with every arm."""
    torch.set_num_threads(args.threads)
    most = max(args.concurrency)
    context = 2 * args.length + 64 + args.tokens + args.count
    # A proposal that branches takes blocks for each branch.
    blocks = 1 + most * (-(-context // _BLOCK) + 32)
    rows = max(256, most * (1 + max(most_tokens(name, args.count) for name in arm_names())))
    target, drafting = (
        Loaded.load(model, blocks=blocks, rows=rows, context=context)
        for model in (args.model, args.drafter or args.model)
    )
    clock = time.process_time if args.cpu_time else time.perf_counter
    bench = Bench(target.plan, target.runner, args.tokens, clock)
    source = TaskSource(Tokenizer.load(args.model), args.length)
    cells = _compare(args, bench, source, drafting)
    seconds = "seconds of the processor" if args.cpu_time else "wall clock"
    heading = (
        f"`python -m benchmarks.speculative {arguments}`\n\n{machine_line()}. "
        f"{args.threads} threads, {seconds}. Drafts of {args.count} tokens, {args.tokens} tokens "
        f"of output, greedy; {args.rounds} rounds behind {args.warm_up} to warm up, TPOT as median "
        "and range.\n"
    )
    figures = {"cells": [cell.figures() for cell in cells]}
    tables = f"{serving_table(cells)}\n\n{compact_table(cells)}"
    return Report(heading, tables, figures, lambda: draw_serving(cells))


def _compare(
    args: argparse.Namespace, bench: Bench, source: TaskSource, drafting: Loaded
) -> list[Cell]:
    """Every arm in every round, at each task and concurrency."""
    names = [name for name in arm_names() if args.arms is None or name in (NONE, *args.arms)]
    arms = [make_arm(name, args.count, drafting) for name in names]
    cells = [Cell(n, t, c) for t in args.tasks for c in args.concurrency for n in names]
    found = {(cell.arm, cell.task, cell.concurrency): cell for cell in cells}
    for number in range(args.warm_up + args.rounds):
        for task in args.tasks:
            for concurrency in args.concurrency:
                prompts = source.prompts(f"{task}", number, max(concurrency, args.least))
                for arm in arms:
                    batches = range(0, len(prompts), concurrency)
                    runs = [bench.run(arm, prompts[at : at + concurrency]) for at in batches]
                    if arm.name == NONE:
                        expected = runs
                    if number >= args.warm_up:
                        cell = found[arm.name, task, concurrency]
                        cell.rounds += runs
                        own, base = (sum(r.tpot_s for r in each) for each in (runs, expected))
                        cell.tpot.append(own / base)
                        cell.same &= [r.tokens for r in runs] == [r.tokens for r in expected]
        sys.stderr.write(f"round {number + 1} of {args.warm_up + args.rounds}\n")
    return cells


def draft_stages(args: argparse.Namespace, arguments: str) -> Report:
    """Time drafting on two ranks."""
    times = stages.measure(2, args.rounds, args.count)
    heading = (
        f"`python -m benchmarks.speculative {arguments}`\n\n{machine_line()}. Two processes over "
        f"gloo, one thread each, float32; proposals of {args.count} tokens to one sequence behind "
        f"64; medians of {args.rounds} rounds and their range.\n"
    )
    return Report(heading, stage_table(times), stage_figures(times), lambda: draw_stages(times))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What guessing tokens is worth.")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("serve", help="a model with each way to guess")
    one.set_defaults(run=serve)
    one.add_argument("model", type=Path)
    one.add_argument("--drafter", type=Path, help="model that drafts [default: the model itself]")
    one.add_argument("--arms", nargs="+", choices=arm_names(), metavar="ARM", help="[default: all]")
    one.add_argument("--tasks", nargs="+", choices=tasks.NAMES, default=list(tasks.NAMES))
    one.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    one.add_argument("--least", type=int, default=4, help="prompts of a round at least")
    one.add_argument("--length", type=int, default=96, help="tokens of a piece of text")
    one.add_argument("--tokens", type=int, default=48, help="tokens of output")
    one.add_argument("--rounds", type=int, default=3)
    one.add_argument("--warm-up", type=int, default=1, help="rounds that do not count")
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--cpu-time", action="store_true", help="count seconds of the processor")
    two = commands.add_parser("stages", help="the drafting stage on two ranks")
    two.set_defaults(run=draft_stages)
    two.add_argument("--rounds", type=int, default=15)
    for each in (one, two):
        each.add_argument("--count", type=int, default=5, help="tokens of a proposal")
        each.add_argument("--out", type=Path, metavar="DIR", help="where the report is written")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
