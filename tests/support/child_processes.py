"""A module of the tests in a process of its own, which is told and answers line by line.

Processes are forked from one that has imported what they need: loading torch takes each of them
seconds of a core, and there are hundreds in the suite.
"""

import multiprocessing
import os
import queue
import runpy
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection

import psutil

ANSWER_S = 60.0

_NURSERY = multiprocessing.get_context("forkserver")
_NURSERY.set_forkserver_preload(
    ["tests.support.rank_workers", "tests.support.rank_peers", "tests.support.link_peers"]
)


class ChildProcess:
    """Runs a module as `python -m MODULE ARGUMENTS` would, and talks to it.

    Args:
        module: to be run.
        arguments: of the command.
        answers: beginnings of the lines that are answers, and no log lines; all by default.
    """

    def __init__(self, module: str, *arguments: object, answers: tuple[str, ...] = ("",)) -> None:
        told, teller = _NURSERY.Pipe(duplex=False)
        listener, answering = _NURSERY.Pipe(duplex=False)
        words = [module, *map(str, arguments)]
        self._process = _NURSERY.Process(target=_run, args=(words, told, answering))
        self._process.start()
        told.close()
        answering.close()
        self._orders = os.fdopen(os.dup(teller.fileno()), "w")
        self._answers = os.fdopen(os.dup(listener.fileno()))
        teller.close()
        listener.close()
        self._prefixes = answers
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        self._orders.write(line + "\n")
        self._orders.flush()

    def line(self) -> str:
        """The oldest answer not taken yet; empty once the process has ended."""
        return self._lines.get(timeout=ANSWER_S)

    def finish(self) -> None:
        """Tell it to end."""
        self._orders.close()

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
        self._process.join()

    def wait(self) -> int:
        """Wait for the process to end by itself; its exit status."""
        self._process.join(ANSWER_S)
        assert self._process.exitcode is not None, "it does not end"
        return self._process.exitcode

    def close(self) -> None:
        """End the process, whatever it does, and give back its pipes."""
        self.kill()
        self._reader.join()
        self._process.close()
        with suppress(BrokenPipeError):
            self._orders.close()
        self._answers.close()

    def _read(self) -> None:
        for line in self._answers:
            if line.startswith(self._prefixes):
                self._lines.put(line.strip())
        self._lines.put("")


def living() -> list[psutil.Process]:
    """Those that still run."""
    nurseries = [
        child
        for child in psutil.Process().children()
        if any("multiprocessing.forkserver" in word for word in child.cmdline())
    ]
    return [child for nursery in nurseries for child in nursery.children(recursive=True)]


def _run(words: list[str], told: Connection, answering: Connection) -> None:
    """Become the process: standard input and output are the pipes."""
    os.dup2(told.fileno(), 0)
    os.dup2(answering.fileno(), 1)
    told.close()
    answering.close()
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__")
