"""The argument parser of all commands: raises instead of exiting, and knows its own flags."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TextIO, TypeAlias

from twinflow.cluster.cli.flags import complain_about_unknown
from twinflow.protos.errors import ConfigError
from twinflow.runtime.nearest import did_you_mean

# What ArgumentParser.add_subparsers returns; argparse has no public name for it.
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of a command.

    Attributes:
        given: values of the arguments that were given, by name; absent ones are not in it.
        complaints: what is wrong with the command line so far, flags that do not exist above all.
        environ: the process environment.
        stdin: where questions are answered.
        stdout: where results go.
    """

    given: Mapping[str, object]
    complaints: list[str]
    environ: Mapping[str, str]
    stdin: TextIO
    stdout: TextIO

    def text(self, name: str, default: str) -> str:
        """The argument `name` if it was given, else `default`."""
        return str(self.given.get(name, default))


Run = Callable[[Invocation], int]


class Parser(argparse.ArgumentParser):
    """An argument parser whose absent flags leave no trace and whose errors are ConfigError."""

    def __init__(self, **options: object) -> None:
        settings: dict[str, object] = {
            "allow_abbrev": False,
            "argument_default": argparse.SUPPRESS,
            "formatter_class": argparse.RawDescriptionHelpFormatter,
        }
        super().__init__(**{**settings, **options})  # type: ignore[arg-type]  # argparse's own names

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError; main() reports it and exits with status 2.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message.removeprefix('argument ')} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Called by argparse for each value of an action with choices, here the commands."""
        choices = list(action.choices or ())
        if choices and value not in choices:
            hint = did_you_mean(
                str(value), choices, otherwise=f"; choose from {', '.join(choices)}"
            )
            self.error(f"{str(value)!r}: unknown command{hint}")

    def runs(self, run: Run) -> None:
        """Let `run` carry out what this parser parses."""
        self.set_defaults(run=run, parser=self)

    def complaints_about(self, unknown: Sequence[str]) -> list[str]:
        """A complaint for each argument that this parser could not place."""
        valid = [flag for action in self._actions for flag in action.option_strings]
        return complain_about_unknown(unknown, valid)
