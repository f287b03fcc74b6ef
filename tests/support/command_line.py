"""Runs the command line in this process, in a world of the test's making."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

from twinflow.cluster.cli.main import run


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str


def run_command(
    *argv: str,
    environ: Mapping[str, str] | None = None,
    typed: str = "",
    at_terminal: bool = False,
) -> Ran:
    """Run `twinflow *argv` with this environment and nothing else of the real one.

    Args:
        argv: the arguments.
        environ: the environment.
        typed: what comes from standard input.
        at_terminal: standard input says that it is one.
    """
    out, err = io.StringIO(), io.StringIO()
    entered = Terminal(typed) if at_terminal else io.StringIO(typed)
    status = run(argv, environ or {}, entered, out, err)
    return Ran(status, out.getvalue(), err.getvalue())


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True
