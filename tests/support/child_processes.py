"""A module of the tests in a process of its own, which is told and answers line by line."""

import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
ANSWER_S = 60.0


class ChildProcess:
    """Starts `python -m MODULE ARGUMENTS` and talks to it.

    Args:
        module: to be run.
        arguments: of the command.
        answers: beginnings of the lines that are answers, and no log lines; all by default.
    """

    def __init__(self, module: str, *arguments: object, answers: tuple[str, ...] = ("",)) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._prefixes = answers
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def line(self) -> str:
        """The oldest answer not taken yet; empty once the process has ended."""
        return self._lines.get(timeout=ANSWER_S)

    def finish(self) -> None:
        """Tell it to end."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def freeze(self) -> None:
        """Stop the process; returns once it is stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        while psutil.Process(self.pid).status() != psutil.STATUS_STOPPED:
            pass

    def thaw(self) -> None:
        """Let a frozen process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the process without a chance to say goodbye."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """Wait for the process to end by itself; its exit status."""
        return self._process.wait(ANSWER_S)

    def close(self) -> None:
        """End the process, whatever it does, and give back its pipes."""
        self.kill()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(self._prefixes):
                self._lines.put(line.strip())
        self._lines.put("")
