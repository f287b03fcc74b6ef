"""The simulator against `twinflow serve`: `python -m benchmarks.prediction MODEL`.

From nothing to a verdict: measures the model's steps (`twinflow profile`), starts a server with one
mixed worker of as many threads, the same scheduler and the same limits, loads it at a part of what
the simulation says it can serve (`benchmarks.serve`), and simulates every run request by request
(`benchmarks.simulator`): both sides have the same arrivals and lengths, so that chance is no part
of the difference and a hundred requests are enough for medians. Exit status 1 if the median of
TTFT or of TBT of a run is off by more than 15 %. The machine must do nothing else, and have a core
besides the worker's, for the gateway and for whoever makes the load. `--out` gets the profile, the
load test's report, what the server said, and report.md.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import uvloop

from benchmarks import simulator
from benchmarks.load.config import BenchConfig
from benchmarks.load.runs import Arm
from benchmarks.load.session import report_session
from benchmarks.load.workload import Workload
from benchmarks.peers.contestants import CHECKOUT, surroundings
from benchmarks.peers.served import Running, Server, start
from benchmarks.reporting import machine_line
from twinflow.cluster.simulator.config import SimulationConfig
from twinflow.cluster.simulator.lengths import Lengths
from twinflow.cluster.simulator.traces import Shape
from twinflow.protos.errors import ConfigError

_TWINFLOW = (sys.executable, "-m", "twinflow")
_START_S = 300.0
# The same for whoever measures, serves and simulates.
_LIMITS = {
    "max-num-batched-tokens": "256",
    "max-num-seqs": "32",
    "kv-cache-memory": str(1 << 29),
}
_MODEL_LEN = ("--max-model-len", "512")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, serve, load, simulate, compare; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        profile = _profile(args)
        config = simulator.config_of(
            simulator.parse([str(args.out / "load"), str(profile), *_policy(args), *_flags()])
        )
        rates = [part * full_rate(config, args) for part in args.loads]
        server = _serve(args)
        try:
            uvloop.run(_load(args, server.arm, server.process.pid, rates))
        finally:
            server.stop()
        table, holds = simulator.table_of(simulator.read_runs(args.out / "load"), config)
    except (ConfigError, OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"{error}\n")
        return simulator.EXIT_UNUSABLE
    heading = (
        f"`python -m benchmarks.prediction {shlex.join(arguments)}`\n\n{machine_line()}; "
        f"{args.threads} threads compute, {args.requests} requests a run, scheduler "
        f"{args.scheduler}.\n\n"
    )
    (args.out / "report.md").write_text(heading + table, "utf-8")
    sys.stdout.write(heading + table)
    return 0 if holds else 1


def full_rate(config: SimulationConfig, args: argparse.Namespace) -> float:
    """Requests per second of a simulation in which all of them come at once."""
    rng = np.random.default_rng(args.seed)
    inputs, outputs = (lengths.draw(rng, args.requests) for lengths in _lengths(args))
    shapes = [Shape(*pair, 0.0) for pair in zip(inputs, outputs, strict=True)]
    run = simulator.RealRun("all at once", shapes, (), ())
    return len(shapes) / simulator.simulate(run, config).end_s


def _lengths(args: argparse.Namespace) -> tuple[Lengths, Lengths]:
    return args.input_tokens, args.output_tokens


def _profile(args: argparse.Namespace) -> Path:
    """Measure the model with the worker's number of threads."""
    path: Path = args.out.resolve() / "profile.json"
    words = ("profile", str(args.model.resolve()), "--output", str(path), *_MODEL_LEN, *_flags())
    measured = ("--device", "cpu", "--threads", str(args.threads), "--seconds", args.seconds)
    command = (*_TWINFLOW, *words, *measured)
    subprocess.run(
        command, check=True, env=surroundings({}, args.threads), cwd=CHECKOUT, stdout=sys.stderr
    )
    return path


def _serve(args: argparse.Namespace) -> Running:
    flags = ("--mixed", "1", "--launcher", "local", "--port", "{port}", "--grpc-port", "0")
    device = ("--device", "cpu", "--threads-per-worker", str(args.threads))
    limits = (*_MODEL_LEN, *_flags(), *_policy(args))
    server = Server("mixed", (*_TWINFLOW, "serve"), (*flags, *device, *limits), ready="/ready")
    values = {"port": str(args.port), "cores": ",".join(map(str, os.sched_getaffinity(0)))}
    return start(server, args.model, values, args.out, _START_S)


async def _load(args: argparse.Namespace, arm: Arm, pid: int, rates: Sequence[float]) -> None:
    inputs, outputs = _lengths(args)
    config = BenchConfig(
        arms=(arm,),
        workload=Workload(requests=args.requests, input_tokens=inputs, output_tokens=outputs),
        rates=tuple(rates),
        seed=args.seed,
        repeats=args.repeats,
        server_pids=(pid,),
        out=args.out / "load",
    )
    await report_session(config, shlex.join(sys.argv), sys.stderr)


def _policy(args: argparse.Namespace) -> tuple[str, str]:
    """The scheduler of the server and of the simulation."""
    return "--scheduler", args.scheduler


def _flags() -> list[str]:
    return [word for name, value in _LIMITS.items() for word in (f"--{name}", value)]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prediction")
    add = parser.add_argument
    spare = max(1, len(os.sched_getaffinity(0)) - 1)
    add("model", type=Path, help="a checkpoint's directory")
    add("--threads", type=int, default=spare, help="of the worker (all cores but one)")
    add("--loads", type=float, nargs="+", default=[0.35, 0.65], help="of the simulated capacity")
    add("--requests", type=int, default=100, help="of each run (100)")
    add("--repeats", type=int, default=1, help="runs at each load (1)")
    add("--input-tokens", type=Lengths.parse, default=Lengths.parse("uniform:16:160"))
    add("--output-tokens", type=Lengths.parse, default=Lengths.parse("uniform:8:40"))
    add("--scheduler", default="chunked", help="of both sides: chunked, layered, ... (chunked)")
    add("--seconds", default="30", help="to measure steps (30)")
    add("--seed", type=int, default=0)
    add("--port", type=int, default=18300, help="a free one (18300)")
    add("--out", type=Path, default=Path("results/prediction"))
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
