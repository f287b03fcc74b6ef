"""Twice the load that a server can serve: `python -m benchmarks.overload MODEL`.

Two servers with one mixed worker each take turns under load: one that promises nothing and one
that refuses whoever would wait longer for a first token than `--max-ttft-ms` allows. Rates are
tried, open loop, from somewhat below what one of them serves of requests that come all at once,
each higher than the one before, until the server without a promise is late with more than a tenth
of them. The most goodput that any rate gave either server is the peak; then both get twice as many
requests a second.

Graceful means that goodput at twice the load is at least 90 % of the peak, and that 99 of 100
refusals come within 50 ms: exit status 1 if the server that promises is not. Goodput is requests a
second of arrivals that met the objectives; a refused request met none. The machine must do nothing
else, and have a core besides the worker's, for the gateways and for whoever makes the load.

`--out` gets report.md (the table), report.json, report.png and what the servers said.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from matplotlib.figure import Figure

from benchmarks.load.config import BenchConfig
from benchmarks.load.records import Outcome
from benchmarks.load.runs import Arm
from benchmarks.load.session import Session
from benchmarks.load.slo import Objective
from benchmarks.load.summary import Summary, summarise
from benchmarks.load.workload import Workload
from benchmarks.peers.child import PeerError
from benchmarks.peers.served import TWINFLOW, Server, start
from benchmarks.reporting import Report, machine_line, markdown_table, new_figure
from twinflow.cluster.simulator.lengths import Lengths
from twinflow.protos.errors import TwinflowError

GOODPUT_PART = 0.9
REFUSAL_MS = 50.0
EXIT_UNUSABLE = 2
_OVERLOAD = 2.0
_START_S = 300.0
# So many a second come all at once.
_AT_ONCE = 1000.0
_FIRST, _STEP, _MOST_STEPS = 0.7, 1.35, 8
_KEPT = 0.9
_WITHOUT, _WITH = "without", "with"


@dataclass(frozen=True, slots=True)
class Run:
    """One server under one load.

    Attributes:
        server: `without` or `with` a promise.
        kind: `rate`, one of those that were tried, or `overload`.
        rate: requests per second.
        goodput: of them, those that met the objectives.
        refused: share of all requests.
        failed: likewise.
        ttft_p50_ms: of those that were served; None if nobody was.
        ttft_p99_ms: likewise.
        refusal_p50_ms: how long a refusal took; None if nobody was refused.
        refusal_p99_ms: likewise.
        invalid: why the run says nothing; empty if it does.
    """

    server: str
    kind: str
    rate: float
    goodput: float
    refused: float
    failed: float
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    refusal_p50_ms: float | None
    refusal_p99_ms: float | None
    invalid: str

    @classmethod
    def of(cls, server: str, kind: str, rate: float, found: Summary) -> "Run":
        """A run from its figures."""
        ttft, refusal, total = found.ttft_ms, found.rejection_ms, found.planned
        refused = found.outcomes.get(str(Outcome.REJECTED), 0)
        served = found.outcomes.get(str(Outcome.OK), 0)
        return cls(
            server=server,
            kind=kind,
            rate=rate,
            goodput=(found.attainment or 0.0) * found.offered_rps,
            refused=refused / total,
            failed=(total - refused - served) / total,
            ttft_p50_ms=ttft.p50 if ttft else None,
            ttft_p99_ms=ttft.p99 if ttft else None,
            refusal_p50_ms=refusal.p50 if refusal else None,
            refusal_p99_ms=refusal.p99 if refusal else None,
            invalid="; ".join(found.invalid),
        )


def peak_of(runs: Sequence[Run]) -> Run:
    """The run with the most goodput among the rates that were tried."""
    return max((run for run in runs if run.kind == "rate"), key=lambda run: run.goodput)


def complaints(runs: Sequence[Run]) -> list[str]:
    """What is not graceful about the server that promises; and runs that say nothing."""
    peak, found = peak_of(runs).goodput, [run.invalid for run in runs if run.invalid]
    for run in runs:
        if (run.server, run.kind) != (_WITH, "overload"):
            continue
        if run.goodput < GOODPUT_PART * peak:
            found.append(f"goodput is {run.goodput / peak:.0%} of the peak")
        if (run.refusal_p99_ms or 0.0) > REFUSAL_MS:
            found.append(f"refusals take up to {run.refusal_p99_ms:.0f} ms (p99)")
        if run.failed:
            found.append(f"{run.failed:.1%} of the requests failed")
    return found


class Bench:
    """Loads the servers in turns.

    Args:
        args: of the command.
        arms: the server without a promise, and the one with.
        pids: of their first processes.
    """

    def __init__(self, args: argparse.Namespace, arms: Sequence[Arm], pids: Sequence[int]) -> None:
        self._args = args
        self._arms = arms
        self._pids = tuple(pids)
        self._seed = args.seed

    async def measure(self) -> list[Run]:
        """All runs: the rates, and twice the peak."""
        (burst,) = await self._load(self._arms[:1], _AT_ONCE, self._args.burst)
        rate, runs = _FIRST * burst[1].achieved_rps, list[Run]()
        for _ in range(_MOST_STEPS):
            without, _ = found = await self._rate("rate", rate)
            runs += found
            if without.goodput < _KEPT * without.rate:
                break
            rate *= _STEP
        for _ in range(self._args.repeats):
            runs += await self._rate("overload", _OVERLOAD * peak_of(runs).goodput)
        return runs

    async def _rate(self, kind: str, rate: float) -> list[Run]:
        count = max(1, round(rate * self._args.seconds))
        found = await self._load(self._arms, rate, count)
        return [Run.of(arm.name, kind, rate, summary) for arm, summary in found]

    async def _load(
        self, arms: Sequence[Arm], rate: float, requests: int
    ) -> list[tuple[Arm, Summary]]:
        args = self._args
        self._seed += 1
        config = BenchConfig(
            arms=tuple(arms),
            workload=Workload(
                requests=requests, input_tokens=args.input_tokens, output_tokens=args.output_tokens
            ),
            rates=(rate,),
            seed=self._seed,
            objectives=self.objectives,
            token_range=tuple(args.token_range),
            server_pids=self._pids,
        )
        return [
            (result.spec.arm, summarise(result.planned, result.records, config.objectives))
            async for result in Session(config, sys.stderr).results()
        ]

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Of a good request."""
        return Objective("ttft", self._args.ttft), Objective("tpot", self._args.tpot)


def as_markdown(runs: Sequence[Run]) -> str:
    """The table, and the verdict."""
    heads = (
        "load",
        "requests/s",
        "promise",
        "goodput/s",
        "of the peak",
        "refused",
        "failed",
        "TTFT p50, ms",
        "p99",
        "refusal p50, ms",
        "p99",
    )
    peak = peak_of(runs).goodput
    found = complaints(runs)
    verdict = f"Not graceful: {'; '.join(found)}." if found else "Graceful."
    return markdown_table(heads, [_row(run, peak) for run in runs]) + f"\n{verdict}\n"


def _row(run: Run, peak: float) -> list[str]:
    times = (run.ttft_p50_ms, run.ttft_p99_ms, run.refusal_p50_ms, run.refusal_p99_ms)
    return [
        "twice the peak" if run.kind == "overload" else "tried",
        f"{run.rate:.2f}",
        run.server,
        f"{run.goodput:.2f}",
        f"{run.goodput / peak:.0%}" if peak else "-",
        f"{run.refused:.0%}",
        f"{run.failed:.1%}",
        *("-" if each is None else f"{each:.0f}" for each in times),
    ]


def draw(runs: Sequence[Run]) -> Figure:
    """Goodput over the rate, and how long refusals took."""
    figure = new_figure(10, 3.8)
    goodput, refusals = figure.subplots(1, 2)
    for server in (_WITHOUT, _WITH):
        own = sorted((run for run in runs if run.server == server), key=lambda run: run.rate)
        label = f"{server} a promise"
        goodput.plot([run.rate for run in own], [run.goodput for run in own], "o-", label=label)
        told = [run for run in own if run.refusal_p99_ms is not None]
        times = [run.refusal_p99_ms for run in told]
        refusals.plot([run.rate for run in told], times, "o", label=label)
    refusals.axhline(REFUSAL_MS, linestyle=":", color="gray")
    goodput.set(title="goodput, requests/s", xlabel="requests/s", ylim=(0, None))
    refusals.set(title="refusals: p99, ms", xlabel="requests/s", ylim=(0, None))
    for axes in (goodput, refusals):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def servers(args: argparse.Namespace) -> Iterator[Server]:
    """The server without a promise, and the one with."""
    own = ("--mixed", "1", "--launcher", "local", "--port", "{port}", "--grpc-port", "0")
    shared = ("--device", "cpu", "--threads-per-worker", str(args.threads))
    for name, promise in ((_WITHOUT, ()), (_WITH, ("--max-ttft-ms", str(args.ttft)))):
        yield Server(name, TWINFLOW, (*own, *shared, *promise), ready="/ready")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, load, print the table; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parse(arguments)
    logs = args.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    cores = ",".join(map(str, os.sched_getaffinity(0)))
    try:
        with ExitStack() as stack:
            running = []
            for number, server in enumerate(servers(args)):
                values = {"port": str(args.port + number), "cores": cores}
                running.append(start(server, args.model, values, logs, _START_S))
                stack.callback(running[-1].stop)
            pids = [each.process.pid for each in running]
            runs = uvloop.run(Bench(args, [each.arm for each in running], pids).measure())
    except (OSError, PeerError, TwinflowError) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_UNUSABLE
    heading = (
        f"`python -m benchmarks.overload {shlex.join(arguments)}`\n\n{machine_line()}; "
        f"{args.threads} threads compute, {args.seconds:g} s a run; a good request has its first "
        f"token within {args.ttft:g} ms and the others {args.tpot:g} ms apart on average.\n"
    )
    figures = {"runs": [asdict(run) for run in runs]}
    Report(heading, as_markdown(runs), figures, lambda: draw(runs)).publish(args.out)
    return 1 if complaints(runs) else 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload")
    add = parser.add_argument
    spare = max(1, len(os.sched_getaffinity(0)) - 1)
    add("model", type=Path, help="a checkpoint's directory")
    add("--threads", type=int, default=spare, help="of each worker (all cores but one)")
    add("--ttft", type=float, default=2000.0, help="objective and promise, in ms (2000)")
    add("--tpot", type=float, default=500.0, help="objective, in ms (500)")
    add("--seconds", type=float, default=20.0, help="of arrivals of each run (20)")
    add("--burst", type=int, default=40, help="requests that come at once (40)")
    add("--repeats", type=int, default=2, help="runs at twice the peak (2)")
    add("--input-tokens", type=Lengths.parse, default=Lengths.parse("uniform:32:256"))
    add("--output-tokens", type=Lengths.parse, default=Lengths.parse("uniform:8:40"))
    add("--token-range", type=int, nargs=2, default=(1000, 20000), help="ids of prompts")
    add("--seed", type=int, default=0)
    add("--port", type=int, default=18400, help="the first of two free ones (18400)")
    add("--out", type=Path, default=Path("results/overload"))
    args = parser.parse_args(argv)
    if not args.model.is_dir():
        parser.error(f"{args.model}: there is no such directory")
    return args


if __name__ == "__main__":
    raise SystemExit(main())
