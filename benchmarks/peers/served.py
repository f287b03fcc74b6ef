"""HTTP servers under one load, in turns: `python -m benchmarks.peers serve`.

All servers run at the same time on the same cores and take turns under load: whoever has no turn
is idle. Load and figures are those of `benchmarks.serve`. llama.cpp's Python server answers one
request at a time and takes no token ids, and transformers has no server of this kind: neither
takes part.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import psutil
import uvloop

from benchmarks.load.config import BenchConfig
from benchmarks.load.plot import draw
from benchmarks.load.runs import Arm
from benchmarks.load.session import report_session
from benchmarks.load.slo import Objective
from benchmarks.load.workload import Workload
from benchmarks.peers.child import PeerError, peak_bytes
from benchmarks.peers.contestants import CHECKOUT, surroundings
from twinflow.cluster.simulator.lengths import Lengths
from twinflow.protos.errors import ConfigError

_POLL_S = 0.25
_STOP_S = 60.0


@dataclass(frozen=True, slots=True)
class Server:
    """How a server is started.

    Attributes:
        name: of the arm.
        program: up to the model, `{home}` standing for the home of peers.
        flags: behind the model; `{port}` and `{spare}` stand for two free ports, and `{threads}`
            for the number of cores.
        variables: of its process; `{cores}` stands for the numbers of the cores.
        ready: path that answers 200 when it serves.
    """

    name: str
    program: tuple[str, ...]
    flags: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    ready: str = "/health"


TWINFLOW = (sys.executable, "-m", "twinflow", "serve")
_OWN_FLAGS = ("--port", "{port}", "--grpc-port", "{spare}", "--launcher", "local")


def _vllm(name: str, dtype: str, *flags: str) -> Server:
    return Server(
        name,
        ("{home}/vllm/bin/vllm", "serve"),
        ("--port", "{port}", "--dtype", dtype, "--max-num-seqs", "64", *flags),
        (("VLLM_CPU_OMP_THREADS_BIND", "{cores}"), ("VLLM_CPU_KVCACHE_SPACE", "1")),
    )


SERVERS = {
    each.name: each
    for each in (
        Server("twinflow-mixed", TWINFLOW, (*_OWN_FLAGS, "--mixed", "1"), ready="/ready"),
        Server(
            "twinflow-1p1d",
            TWINFLOW,
            (*_OWN_FLAGS, "--prefill", "1", "--decode", "1"),
            ready="/ready",
        ),
        _vllm("vllm", "bfloat16"),
        _vllm("vllm-eager", "bfloat16", "--enforce-eager"),
        _vllm("vllm-float32", "float32", "--enforce-eager"),
    )
}
_ARMS = ["twinflow-mixed", "twinflow-1p1d", "vllm"]


@dataclass(slots=True)
class Running:
    """A server that serves.

    Attributes:
        arm: for the load.
        process: its first process.
        start_s: seconds until it was ready.
    """

    arm: Arm
    process: "subprocess.Popen[bytes]"
    start_s: float

    def peak_bytes(self) -> int:
        """Most memory that its processes had resident, each at its own time."""
        root = psutil.Process(self.process.pid)
        family = (root, *root.children(recursive=True))
        return sum(peak_bytes(each.pid) for each in family)

    def stop(self) -> None:
        """End it, patiently at first."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(_STOP_S)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the command, but for those of all commands."""
    add = parser.add_argument
    add("--arms", nargs="+", default=_ARMS, help=f"of {', '.join(SERVERS)}")
    add("--rate", type=float, nargs="+", default=[1.0], help="requests per second")
    add("--requests", type=int, default=20, help="of each run")
    add("--repeats", type=int, default=3, help="runs of each server at each rate")
    add("--input-tokens", type=Lengths.parse, default=Lengths.parse("fixed:128"))
    add("--output-tokens", type=Lengths.parse, default=Lengths.parse("fixed:32"))
    add("--slo", type=Objective.parse, nargs="+", default=[], metavar="MEASURE:MS")
    add("--seed", type=int, default=0)
    add("--first-port", type=int, default=18100, help="two free ports for each server")


def main(args: argparse.Namespace, command: str, say: Callable[[str], None]) -> int:
    """Start the servers, load them in turns, report.

    Raises:
        ConfigError: an arm is unknown.
    """
    unknown = [name for name in args.arms if name not in SERVERS]
    if unknown:
        raise ConfigError(f"--arms {unknown[0]}: unknown; there are {', '.join(SERVERS)}")
    with ExitStack() as stack:
        running, missing = _start(args, say, stack)
        if not running:
            raise ConfigError(f"no server started: {missing}")
        config = BenchConfig(
            arms=tuple(server.arm for server in running),
            workload=Workload(
                requests=args.requests,
                input_tokens=args.input_tokens,
                output_tokens=args.output_tokens,
            ),
            rates=tuple(args.rate),
            seed=args.seed,
            repeats=args.repeats,
            objectives=tuple(args.slo),
            server_pids=tuple(server.process.pid for server in running),
            out=args.out,
        )
        report = uvloop.run(report_session(config, command, sys.stderr))
        text = report.as_markdown() + _starts(running, missing)
    sys.stdout.write(text)
    if args.out is not None:
        (args.out / "report.md").write_text(text, "utf-8")
        draw(report, args.out / "report.png")
    return 0


def _starts(running: Sequence[Running], missing: dict[str, str]) -> str:
    lines = ["", "| server | ready after, s | peak memory of all processes, MiB |", "|---|--:|--:|"]
    for server in running:
        memory = server.peak_bytes() / 2**20
        lines.append(f"| {server.arm.name} | {server.start_s:.1f} | {memory:.0f} |")
    lines += [f"\n{name} did not take part: {why}" for name, why in missing.items()]
    return "\n".join(lines) + "\n"


def _start(
    args: argparse.Namespace, say: Callable[[str], None], stack: ExitStack
) -> tuple[list[Running], dict[str, str]]:
    """Start the servers one after the other, so that none slows the start of another."""
    running: list[Running] = []
    missing: dict[str, str] = {}
    logs = (args.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(args.arms):
        say(f"starting {name}")
        values = {
            "home": str(args.home.resolve()),
            "port": str(args.first_port + 2 * index),
            "spare": str(args.first_port + 2 * index + 1),
            "cores": ",".join(map(str, args.cores)),
        }
        try:
            server = start(SERVERS[name], args.model, values, logs, args.start_timeout)
        except (OSError, PeerError) as error:
            missing[name] = str(error)
            say(f"without {name}: {error}")
            continue
        stack.callback(server.stop)
        running.append(server)
    return running, missing


def start(
    server: Server, model: Path, values: dict[str, str], logs: Path, timeout_s: float
) -> Running:
    """Start a server and wait until it serves.

    Args:
        server: which.
        model: directory.
        values: for what stands in braces.
        logs: folder for what it says.
        timeout_s: how long that may take.

    Raises:
        OSError: its program is not there.
        PeerError: it ends, or is not ready in time.
    """
    cores = values["cores"]
    words = (*server.program, str(model.resolve()), *server.flags)
    command = ["taskset", "-c", cores, *(word.format_map(values) for word in words)]
    if not Path(command[3]).exists():
        raise FileNotFoundError(f"not installed: no {command[3]}")
    variables = {name: value.format_map(values) for name, value in server.variables}
    environment = surroundings(variables, len(cores.split(",")))
    url, began = f"http://127.0.0.1:{values['port']}", time.monotonic()
    log = logs / f"{server.name}.txt"
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env=environment, cwd=CHECKOUT
        )
    running = Running(Arm(server.name, url), process, 0.0)
    try:
        while not _answers(url + server.ready):
            late = time.monotonic() - began > timeout_s
            if late or process.poll() is not None:
                what = f"not ready after {timeout_s:.0f} s" if late else "ended before it was ready"
                last = log.read_text("utf-8", errors="replace").strip().splitlines()[-3:]
                raise PeerError(f"{server.name}: {what}; its last words: {' | '.join(last)}")
            time.sleep(_POLL_S)
    except BaseException:  # an interrupt too: who is started and not waited for is left to nobody
        running.stop()
        raise
    running.start_s = time.monotonic() - began
    return running


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5.0) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except (OSError, urllib.error.URLError):
        return False
