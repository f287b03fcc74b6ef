"""A real process as one rank of a group, told what to do over its standard input.

`python -m tests.support.rank_peers STORE_PORT RANK SIZE DEADLINE_S` joins a group and then reads
lines `COUNT ELEMENTS`: so many sums of parts of so many elements. It answers each with `done`, or
with what went wrong, and then ends. `RankProcess` is the driving side.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import torch
from tests.support.link_peers import PEER
from tests.support.link_store import RemoteStore
from tests.support.rank_groups import ranks_config

from twinflow.parallel.ranks.distributed import DistributedRanks
from twinflow.protos.errors import RankLost

ROOT = Path(__file__).resolve().parents[2]
GROUP = "ranks"
_ANSWER_S = 60.0


class RankProcess:
    """Starts a rank and talks to it."""

    def __init__(self, store_port: int, rank: int, size: int, deadline_s: float) -> None:
        command = [sys.executable, "-m", "tests.support.rank_peers"]
        self._process = subprocess.Popen(
            [*command, str(store_port), str(rank), str(size), str(deadline_s)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def begin(self, count: int, elements: int) -> None:
        """Let it add up `count` parts."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count} {elements}\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """The oldest answer not taken yet; empty if the process has ended."""
        return self._answers.get(timeout=_ANSWER_S)

    def stop(self) -> None:
        """Freeze the process; returns once it is frozen."""
        os.kill(self.pid, signal.SIGSTOP)
        while psutil.Process(self.pid).status() != psutil.STATUS_STOPPED:
            pass

    def kill(self) -> None:
        """End the process without a chance to say goodbye."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process and give back its pipes."""
        self.kill()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line.strip())
        self._answers.put("")


def _main(port: int, rank: int, size: int, deadline_s: float) -> None:
    config = ranks_config(rank, size, deadline_s=deadline_s, connect_s=60.0)
    ranks = DistributedRanks.connect(config, RemoteStore(port, GROUP, PEER))
    _say("connected")
    for line in sys.stdin:
        count, elements = map(int, line.split())
        try:
            for _ in range(count):
                ranks.all_reduce(torch.ones(1, elements))
        except RankLost as error:
            _say(str(error))
            return
        _say("done")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    _main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
