"""A contestant's process as seen from the race: started, asked, stopped.

Every wait has a deadline. What the process writes to standard error goes to a file.
"""

import json
import queue
import shlex
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.load.machine import PROC
from benchmarks.peers.contestants import CHECKOUT, Contestant, surroundings
from benchmarks.peers.engines.protocol import Settings
from twinflow.protos.errors import TwinflowError

_LAST_LINES = 3


class PeerError(TwinflowError):
    """A contestant cannot take part, or no longer; the message says which one and why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a contestant may take, in seconds.

    Attributes:
        start: to be ready.
        answer: for one order.
        stop: to end by itself; then it is killed.
    """

    start: float = 900.0
    answer: float = 600.0
    stop: float = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What has come of an order.

    Attributes:
        wall_s: seconds that it took.
        cpu_s: processor seconds of the process meanwhile.
        tokens: that were generated, for each prompt.
    """

    wall_s: float
    cpu_s: float
    tokens: list[list[int]]


class Child:
    """A contestant, started.

    Args:
        name: of the contestant.
        command: program and arguments.
        environment: of the process.
        log: file for what it says.
        limits: on its answers.

    Attributes:
        name: of the contestant.
        version: of its engine.
        start_s: seconds until it was ready.

    Raises:
        PeerError: it does not start.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: dict[str, str],
        log: Path,
        limits: Limits,
    ) -> None:
        self.name = name
        self._log = log
        self._limits = limits
        began = time.monotonic()
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=CHECKOUT,
                text=True,
            )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), daemon=True
        )
        self._reader.start()
        try:
            self.version = str(self._next("start", limits.start)["version"])
        except PeerError:
            self.stop()
            raise
        self.start_s = time.monotonic() - began

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def generate(self, prompts: Sequence[Sequence[int]], count: int) -> Answer:
        """Have it continue prompts by `count` tokens each.

        Raises:
            PeerError: it fails or takes too long.
        """
        order = json.dumps({"prompts": prompts, "count": count})
        try:
            self._input.write(order + "\n")
            self._input.flush()
        except OSError:
            raise self._error("ended") from None
        phase = f"generate {count} tokens for {len(prompts)} prompts"
        return Answer(**self._next(phase, self._limits.answer))

    def peak_bytes(self) -> int:
        """Most memory that was resident at a time so far."""
        return peak_bytes(self.pid)

    def stop(self) -> None:
        """End it, patiently at first."""
        try:
            self._input.close()
            self._process.wait(self._limits.stop)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait(self._limits.stop)
        self._reader.join(self._limits.stop)

    @property
    def _input(self) -> IO[str]:
        if self._process.stdin is None:
            raise self._error("has no standard input")
        return self._process.stdin

    def _read(self, answers: IO[str]) -> None:
        with answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put("")

    def _next(self, phase: str, timeout_s: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise self._error(f"took more than {timeout_s:.0f} s to {phase}") from None
        if not line:
            raise self._error(f"ended instead of answering: {phase}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _error(self, what: str) -> PeerError:
        said = self._log.read_text("utf-8", errors="replace").strip().splitlines()
        last = " | ".join(line.strip() for line in said[-_LAST_LINES:])
        return PeerError(f"{self.name}: {what}; its last words: {last or 'none'}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where contestants run.

    Attributes:
        model: directory of the model.
        home: of the environments of the others.
        logs: folder for what they say.
        cores: that each of them may use, with a thread on each.
        limits: on their answers.
    """

    model: Path
    home: Path
    logs: Path
    cores: tuple[int, ...]
    limits: Limits = Limits()

    def start(self, who: Contestant, settings: Settings) -> Child:
        """Start a contestant; model, variant and threads of the settings are made to fit it.

        Raises:
            ConfigError: it is not installed.
            PeerError: it does not start.
        """
        own = Settings(
            **{
                **asdict(settings),
                "model": str(who.model(self.model, self.home)),
                "variant": who.variant,
                "threads": len(self.cores),
            }
        )
        python = str(who.python(self.home))
        cores = ",".join(map(str, self.cores))
        module = f"benchmarks.peers.engines.{who.module}"
        command = ["taskset", "-c", cores, python, "-m", module, json.dumps(asdict(own))]
        variables = {**who.variables, "VLLM_CPU_OMP_THREADS_BIND": cores}
        environment = surroundings(variables, len(self.cores))
        if who.environment is not None:
            environment["PYTHONPATH"] = str(CHECKOUT)
        log = self.logs / f"{who.name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        return Child(who.name, command, environment, log, self.limits)


def peak_bytes(pid: int, proc: Path = PROC) -> int:
    """Most memory that a process had resident at a time; 0 where the system does not tell."""
    try:
        lines = (proc / str(pid) / "status").read_text("utf-8").splitlines()
    except OSError:
        return 0
    kib = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(next(kib, "0")) * 1024


def as_command(arguments: Sequence[str]) -> str:
    """The command line that repeats a run."""
    return f"python -m benchmarks.peers {shlex.join(arguments)}"
