"""Entry point of the `twinflow` command: parses, runs one command, turns errors into exit status.

Exit status: 0 done, 1 failed while running, 2 refused (the settings or the model), 130 interrupted.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import TextIO, cast

import twinflow
from twinflow.cluster.cli import environment
from twinflow.cluster.cli.commands import (
    admin,
    calibrate,
    chaos,
    chat,
    cluster,
    models,
    profile,
    serve,
    simulate,
    status,
    top,
)
from twinflow.cluster.cli.parser import Invocation, Parser, Run
from twinflow.cluster.launch.logs import configure_logging
from twinflow.protos.errors import SetupError, TwinflowError

DESCRIPTION = """\
Serve a large language model through a prefill pool and a decode pool.
"""

EXAMPLES = """\
examples:
  twinflow models import SmolLM2-135M.gguf ./smollm2-135m
  twinflow serve ./smollm2-135m
  twinflow chat
  twinflow status

`twinflow COMMAND --help` explains a command.
"""

# In the order of the help.
COMMANDS = (
    *(serve, chat, status, top, admin, models),
    *(calibrate, profile, simulate, cluster, chaos),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line of this process (or `argv`) and return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    configure_logging("info")
    return run(words, environment.process_environment(), sys.stdin, sys.stdout, sys.stderr)


def run(
    argv: Sequence[str],
    environ: Mapping[str, str],
    stdin: TextIO,
    stdout: TextIO,
    stderr: TextIO,
) -> int:
    """Run `argv` in a given world; `main` gives it the real one."""
    try:
        namespace, unknown = build_parser().parse_known_args(argv)
        given = vars(namespace)
        parser, command = cast(Parser, given.pop("parser")), cast(Run, given.pop("run"))
        complaints = parser.complaints_about(unknown)
        return command(Invocation(given, complaints, environ, stdin, stdout))
    except SetupError as error:
        stderr.write(f"twinflow: {error}\n")
        return 2
    except TwinflowError as error:
        stderr.write(f"twinflow: {error}\n")
        return 1
    except KeyboardInterrupt:
        stderr.write("twinflow: interrupted\n")
        return 130


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="twinflow", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"twinflow {twinflow.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add_to(commands)
    return parser
