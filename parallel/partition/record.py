"""Decisions as lines of JSON: written where they are made, made again where they are doubted.

The first line is the set-up that holds for all decisions of a file.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from twinflow.parallel.partition.control import ControlConfig, Decision, decide
from twinflow.parallel.partition.layout import Grid, Layout
from twinflow.protos.errors import ConfigError


class Setup(msgspec.Struct, frozen=True):
    """What all decisions of a device have in common."""

    config: ControlConfig
    grid: Grid


class _Recorded:
    """The times that a decision saw."""

    def __init__(self, decision: Decision) -> None:
        self._decision = decision

    def alone(self) -> tuple[float, float]:
        if self._decision.alone is None:
            raise LookupError("the recorded decision asked for no times")
        return self._decision.alone

    def split(self, layout: Layout) -> tuple[float, float]:
        return self._decision.times[layout.prefill]


class DecisionLog:
    """Writes decisions to a file as they are made.

    Args:
        path: the file; what it contained is lost.
        setup: what all of them have in common.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path, setup: Setup) -> None:
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error
        self._write(setup)

    def write(self, decision: Decision) -> None:
        """Add a decision."""
        self._write(decision)

    def close(self) -> None:
        """Write what is left."""
        self._file.close()

    def _write(self, line: Setup | Decision) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")


def write_decisions(path: Path, setup: Setup, decisions: Iterable[Decision]) -> None:
    """Write a file of decisions."""
    log = DecisionLog(path, setup)
    for decision in decisions:
        log.write(decision)
    log.close()


def read_decisions(path: Path) -> tuple[Setup, list[Decision]]:
    """Read a file of decisions.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    first, *rest = path.read_bytes().splitlines()
    setup = msgspec.json.decode(first, type=Setup)
    return setup, [msgspec.json.decode(line, type=Decision) for line in rest]


def replay(setup: Setup, decision: Decision) -> Decision:
    """Decide again from what a decision saw.

    Raises:
        LookupError: the search looks at a split that it did not look at then.
    """
    both = decision.inputs.prefills and decision.inputs.decodes
    recorded = None if both and decision.alone is None else _Recorded(decision)
    return decide(setup.config, setup.grid, decision.before, decision.inputs, recorded)
