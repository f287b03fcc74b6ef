"""Choices as lines of JSON: written where they are made, made again where they are doubted.

Each line has what a choice depends on and what was chosen, so that any line can be replayed alone.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from twinflow.protos.errors import ConfigError
from twinflow.runtime.speculative.goodput.choice import GoodputChoice, GoodputInputs, choose


class _Line(msgspec.Struct, frozen=True):
    inputs: GoodputInputs
    choice: GoodputChoice


class GoodputLog:
    """Writes choices to a file as they are made.

    Args:
        path: the file; what it contained is lost. Its directory is made if only that is missing.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(exist_ok=True)
            # A line is on disk as soon as it is whole: a worker may end at any time.
            self._file = path.open("w", buffering=1)
        except OSError as error:
            raise ConfigError(
                f"--speculative-config: adaptive_decisions: {path} cannot be written "
                f"({error.strerror})"
            ) from error

    def write(self, inputs: GoodputInputs, choice: GoodputChoice) -> None:
        """Add a choice."""
        self._file.write(msgspec.json.encode(_Line(inputs, choice)).decode() + "\n")

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


def read_choices(path: Path) -> Iterator[tuple[GoodputInputs, GoodputChoice]]:
    """The choices of a file, in order.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    for line in path.read_bytes().splitlines():
        decoded = msgspec.json.decode(line, type=_Line)
        yield decoded.inputs, decoded.choice


def differing_choices(path: Path) -> list[int]:
    """Numbers of the lines whose choice is not what the same inputs give now; the first is 0."""
    return [
        number
        for number, (inputs, choice) in enumerate(read_choices(path))
        if choose(inputs) != choice
    ]
