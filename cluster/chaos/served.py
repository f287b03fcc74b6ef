"""`twinflow serve` for a program: settings come as a JSON line of standard input, and what a
terminal would show goes out as JSON lines. The process is the command itself otherwise; it can be
killed, frozen and interrupted like one.
"""

import json
import os
import signal
import sys
import threading
from dataclasses import asdict
from typing import TextIO

from twinflow.cluster.cli.environment import process_environment
from twinflow.cluster.cli.progress import ReadySummary
from twinflow.cluster.cli.sources import resolve
from twinflow.cluster.launch.logs import configure_logging
from twinflow.cluster.launch.serve import serve
from twinflow.protos.errors import TwinflowError


class LineUI:
    """A `ServeUI` that writes a JSON object per line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def phase(self, name: str, detail: str = "") -> None:
        """See `ServeUI.phase`."""
        self._write(message=f"{name}: {detail}" if detail else name)

    def progress(self, done: int, total: int) -> None:
        """See `ServeUI.progress`; nobody looks."""

    def ready(self, summary: ReadySummary) -> None:
        """See `ServeUI.ready`."""
        self._write(ready=asdict(summary))

    def message(self, text: str) -> None:
        """See `ServeUI.message`."""
        self._write(message=text)

    def _write(self, **line: object) -> None:
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()


def main() -> int:
    """Serve as the first line of standard input says; returns the command's exit status."""
    given = json.loads(sys.stdin.readline())
    configure_logging("info")
    threading.Thread(target=_stop_with_the_runner, daemon=True).start()
    ui = LineUI(sys.stdout)
    try:
        return serve(resolve(given, process_environment(), []), ui)
    except TwinflowError as error:
        ui.message(str(error))
        return 2


def _stop_with_the_runner() -> None:
    """Whoever broke this deployment is gone when standard input ends: nothing may stay."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    raise SystemExit(main())
