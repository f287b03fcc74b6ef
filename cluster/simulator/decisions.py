"""Writes what the controllers of simulated devices decide, a file for each worker.

The files are those of `twinflow serve --lane-decisions`, and decisions in them can be made again.
"""

from collections.abc import Iterable
from pathlib import Path

from twinflow.parallel.partition.control import Decision
from twinflow.parallel.partition.record import DecisionLog, Setup


class DecisionFolder:
    """See the module.

    Args:
        folder: for the files, which are named like their workers.
        setup: what all decisions have in common.
    """

    def __init__(self, folder: Path, setup: Setup) -> None:
        self._folder = folder
        self._setup = setup
        self._logs: dict[str, DecisionLog] = {}

    def open(self, worker_ids: Iterable[str]) -> None:
        """Begin the files of workers.

        Raises:
            ConfigError: one cannot be written, or they are more than may be open at a time.
        """
        for worker_id in worker_ids:
            path = self._folder / f"{worker_id}.jsonl"
            self._logs[worker_id] = DecisionLog(path, self._setup)

    def write(self, worker_id: str, decision: Decision) -> None:
        """Add a decision to a worker's file."""
        self._logs[worker_id].write(decision)

    def close(self) -> None:
        """Write what is left."""
        for log in self._logs.values():
            log.close()
