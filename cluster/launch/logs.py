"""How the processes of a deployment log: one line per event on standard error, no prompts.

A line that cannot be written is lost, and nothing else is: a disk that is full must not end what
serves.
"""

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog


class LossyStream:
    """A stream for lines of which it loses those that cannot be written; it never raises OSError.

    Args:
        stream: where they go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write, or lose the text."""
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        """Write what is held back, or go on holding it back."""
        with suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Whether somebody looks."""
        return self._stream.isatty()


def configure_logging(level: str) -> None:
    """Write events of `level` and above; call once, at the start of a process.

    Args:
        level: `debug`, `info`, `warning` or `error`.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, LossyStream(sys.stderr))),
        cache_logger_on_first_use=True,
    )
