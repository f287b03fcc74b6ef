"""Open-loop load test of OpenAI-compatible servers: `python -m benchmarks.serve --help`.

Draws every arrival beforehand, sends each request at its time, measures from that time, and writes
a report with what a reader needs to judge it. The method is described in docs/benchmarks.md; the
parts are in benchmarks/load. Starts no server.
"""

import resource
import shlex
import sys
from collections.abc import Sequence

import uvloop

from benchmarks.load.calibrate import CASES, calibrate
from benchmarks.load.checks import render
from benchmarks.load.cli import parse
from benchmarks.load.config import BenchConfig
from benchmarks.load.plot import draw
from benchmarks.load.session import report_session
from twinflow.protos.errors import ConfigError, TwinflowError

EXIT_CALIBRATION = 1
EXIT_UNUSABLE = 2
EXIT_INVALID = 3
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the flags ask for; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    config = parse(arguments)
    _allow_many_connections()
    try:
        if config is None:
            return uvloop.run(_calibrate())
        return uvloop.run(_serve(config, f"python -m benchmarks.serve {shlex.join(arguments)}"))
    except TwinflowError as error:
        flag = "" if isinstance(error, ConfigError) else "server: "
        _say(f"{flag}{error}")
        return EXIT_UNUSABLE
    except KeyboardInterrupt:
        _say("interrupted; --out DIR holds the runs that were complete")
        return EXIT_INTERRUPTED


async def _calibrate() -> int:
    checks, discarded = await calibrate(CASES, lambda text: _say(f"calibration: {text}"))
    sys.stdout.write(render(checks, discarded) + "\n")
    return 0 if all(check.passed for check in checks) else EXIT_CALIBRATION


async def _serve(config: BenchConfig, command: str) -> int:
    report = await report_session(config, command, sys.stderr)
    if config.out is not None:
        draw(report, config.out / "report.png")
    sys.stdout.write(report.as_markdown())
    return EXIT_INVALID if any(summary.invalid for _, summary in report.runs) else 0


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _allow_many_connections() -> None:
    """An open loop has as many connections as the server is slow; let it have all it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    raise SystemExit(main())
