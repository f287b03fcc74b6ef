"""Command line: `python -m benchmarks.peers setup | race | serve`."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers import served
from benchmarks.peers.child import Child, Limits, PeerError, Place, as_command
from benchmarks.peers.contestants import CONTESTANTS, HOME, Contestant, choose
from benchmarks.peers.engines.protocol import Settings
from benchmarks.peers.limits import Machine
from benchmarks.peers.model_size import ModelSize
from benchmarks.peers.race import Plan, race
from benchmarks.peers.report import RaceReport, Started
from benchmarks.peers.setup import NAMES, set_up
from benchmarks.reporting import machine_line
from twinflow.protos.errors import ConfigError

_ARMS = ["twinflow", "vllm", "llama-q4_1", "llama-bf16", "transformers"]


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the flags ask for; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    try:
        if args.command == "setup":
            return 1 if set_up(args.names or list(NAMES), args.home, _say) else 0
        if args.command == "serve":
            return served.main(args, as_command(arguments), _say)
        return _race(args, as_command(arguments))
    except ConfigError as error:
        _say(error.message)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    setup = commands.add_parser("setup", help="make the environments of the other engines")
    setup.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    run = commands.add_parser("race", help="decode and prefill, in one process each")
    run.add_argument("--arms", nargs="+", default=_ARMS, help=f"of {', '.join(CONTESTANTS)}")
    run.add_argument("--batches", type=int, nargs="*", default=[1, 16])
    run.add_argument("--prompts", type=int, nargs="*", default=[128, 512])
    run.add_argument("--tokens", type=int, default=16, help="further tokens of each sequence")
    run.add_argument("--rounds", type=int, default=3)
    serve = commands.add_parser("serve", help="HTTP servers under one load")
    served.add_flags(serve)
    for each in (run, serve):
        each.add_argument("model", type=Path)
        each.add_argument("--out", type=Path, metavar="DIR", help="where the report is written")
        each.add_argument("--start-timeout", type=float, default=900.0, metavar="S")
    for each, cores in ((run, [0]), (serve, sorted(os.sched_getaffinity(0)))):
        each.add_argument("--cores", type=int, nargs="+", default=cores, help="of each engine")
    for each in (setup, run, serve):
        each.add_argument("--home", type=Path, default=HOME, help="of the environments")
    return parser


def _race(args: argparse.Namespace, command: str) -> int:
    plan = Plan(tuple(args.batches), tuple(args.prompts), args.tokens, args.rounds)
    contestants = choose(args.arms)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(
            args.model.resolve(),
            args.home.resolve(),
            (args.out or Path(folder)) / "logs",
            tuple(args.cores),
            Limits(start=args.start_timeout),
        )
        running, missing = _start(contestants, place, plan)
        try:
            found = race(running, plan, Machine().measure, _say)
            started = {
                child.name: Started(child.version, child.start_s, child.peak_bytes())
                for child in running
            }
        finally:
            for child in running:
                child.stop()
    heading = (
        f"`{command}`\n\n{machine_line()}, of which each engine has {len(args.cores)} cores; load "
        f"average {os.getloadavg()[0]:.1f} at the end, {os.getloadavg()[2]:.1f} over 15 minutes. "
        f"{plan}."
    )
    report = RaceReport(heading, ModelSize.of(args.model), found, started, missing)
    report.report().publish(args.out)
    return 0


def _start(
    contestants: Sequence[Contestant], place: Place, plan: Plan
) -> tuple[list[Child], dict[str, str]]:
    settings = Settings("", "", 0, plan.max_tokens, max(plan.batches, default=1), plan.total_tokens)
    running: list[Child] = []
    missing: dict[str, str] = {}
    for who in contestants:
        _say(f"starting {who.name}")
        try:
            running.append(place.start(who, settings))
        except (ConfigError, PeerError) as error:
            _say(f"without {who.name}: {error.message}")
            missing[who.name] = error.message
    return running, missing


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
