"""What is written of a deployment; and a disk that is full."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from twinflow.cluster.cli.progress import TerminalUI
from twinflow.cluster.launch.logs import LossyStream

FULL = Path("/dev/full")
LOGS = """
import structlog
from twinflow.cluster.launch.logs import configure_logging
configure_logging("warning")
log = structlog.get_logger()
for number in range(1000):
    log.warning("a line", number=number)
log.info("nothing")
"""

needs_a_full_disk = pytest.mark.skipif(not FULL.exists(), reason="Linux has /dev/full")


def test_lines_go_through_and_nobody_is_asked_twice() -> None:
    stream = io.StringIO()
    lossy = LossyStream(stream)
    lossy.write("a line\n")
    lossy.flush()
    assert stream.getvalue() == "a line\n"
    assert not lossy.isatty()


@needs_a_full_disk
def test_who_logs_goes_on_when_the_disk_is_full() -> None:
    script = LOGS + "print('done')"
    with FULL.open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE, stderr=full, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert ran.stdout == "done\n"
    # 120: what Python itself held back for standard error could not be written at its end either.
    assert ran.returncode in (0, 120)


def test_events_are_lines_of_standard_error() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LOGS], capture_output=True, text=True, check=True, timeout=60
    )
    lines = ran.stderr.splitlines()
    assert (len(lines), ran.stdout) == (1000, "")
    assert 'level=warning event="a line" number=999' in lines[-1]


@needs_a_full_disk
def test_a_terminal_that_cannot_be_written_to_ends_nothing() -> None:
    full = FULL.open("w")
    ui = TerminalUI(full)
    for _ in range(1000):
        ui.message("a worker is lost")
    with pytest.raises(OSError, match="No space left"):
        full.close()
