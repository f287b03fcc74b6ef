"""What `twinflow serve` shows while it starts, and the summary when it is ready.

The launcher reports to a `ServeUI`; `TerminalUI` writes plain lines, each with the seconds since
the command began, so that a log file reads as well as a terminal. Only on a terminal is a line
rewritten in place, for progress within a phase.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from twinflow.cluster.launch.logs import LossyStream

_QUESTION = "What is the capital of France?"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadySummary:
    """What is being served, and where.

    Attributes:
        model: the name requests use.
        http_url: `http://127.0.0.1:8000`, with the port that was really bound.
        grpc_target: `127.0.0.1:50051`, likewise.
        pools: worker names by role, as `{"prefill": ("prefill-0",), "decode": ("decode-0",)}`.
        ranks: how many ranks the workers of a role have, where that is more than one.
        needs_key: whether requests must carry an API key.
    """

    model: str
    http_url: str
    grpc_target: str
    pools: Mapping[str, tuple[str, ...]]
    ranks: Mapping[str, int] = field(default_factory=dict)
    needs_key: bool = False


class ServeUI(Protocol):
    """Where a launcher says how far it is."""

    def phase(self, name: str, detail: str = "") -> None:
        """A step of starting or stopping begins, and the one before it is over."""
        ...

    def progress(self, done: int, total: int) -> None:
        """So much of the current phase is done; shown where it costs no extra line."""
        ...

    def ready(self, summary: ReadySummary) -> None:
        """Requests are answered from now on."""
        ...

    def message(self, text: str) -> None:
        """Something an operator should know that is no phase."""
        ...


class TerminalUI:
    """A ServeUI for people: a line per phase, and two commands to try when ready.

    Args:
        stream: where to write; its `isatty` decides whether lines are rewritten.
        clock: seconds, monotonic.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        # Telling of a deployment must not be what ends it.
        self._stream = LossyStream(stream)
        self._clock = clock
        self._began = clock()
        # The progress line that the cursor stands behind; empty at the beginning of a line.
        self._bar = ""

    def phase(self, name: str, detail: str = "") -> None:
        self._write_line(f"{name}: {detail}" if detail else name)

    def progress(self, done: int, total: int) -> None:
        if not self._stream.isatty() or total <= 0:
            return
        bar = f"{min(done / total, 1.0):4.0%}"
        if bar != self._bar:
            self._bar = bar
            self._stream.write(f"\r{self._stamp()} {bar}")
            self._stream.flush()

    def ready(self, summary: ReadySummary) -> None:
        self._write_line(f"Ready: {summary.model}")
        self._stream.write(f"\n{describe(summary)}\n\n")
        self._stream.flush()

    def message(self, text: str) -> None:
        self._write_line(text)

    def _write_line(self, text: str) -> None:
        if self._bar:
            self._stream.write("\n")
            self._bar = ""
        self._stream.write(f"{self._stamp()} {text}\n")
        self._stream.flush()

    def _stamp(self) -> str:
        return f"[{self._clock() - self._began:6.1f} s]"


def describe(summary: ReadySummary) -> str:
    """Endpoints and pools, and one command each to try HTTP and gRPC."""
    pools = [
        f"  {role:<9}{_crowd(len(names), summary.ranks.get(role, 1))}: {', '.join(names)}"
        for role, names in summary.pools.items()
        if names
    ]
    return "\n".join(
        [
            f"  HTTP     {summary.http_url}/v1",
            f"  gRPC     {summary.grpc_target}",
            f"  Watch    {summary.http_url}/dashboard",
            *pools,
            "",
            "Try it:",
            "",
            _curl(summary),
            "",
            _grpcurl(summary),
            "",
            "Ctrl-C finishes running requests and stops.",
        ]
    )


def _crowd(workers: int, ranks: int) -> str:
    count = f"{workers} worker{'s' if workers > 1 else ''}"
    return f"{count} of {ranks} ranks" if ranks > 1 else count


def _curl(summary: ReadySummary) -> str:
    body = {
        "model": summary.model,
        "messages": [{"role": "user", "content": _QUESTION}],
        "stream": True,
    }
    key = ' -H "authorization: Bearer $TWINFLOW_API_KEY"' if summary.needs_key else ""
    return (
        f"curl -N {summary.http_url}/v1/chat/completions -H 'content-type: application/json'{key}"
        f" -d '{_quotable(body)}'"
    )


def _grpcurl(summary: ReadySummary) -> str:
    body = {
        "input": {
            "model": summary.model,
            "chat": {"messages": [{"role": "user", "content": _QUESTION}]},
        }
    }
    key = ' -H "authorization: Bearer $TWINFLOW_API_KEY"' if summary.needs_key else ""
    return (
        f"grpcurl -plaintext{key} -d '{_quotable(body)}' {summary.grpc_target}"
        " twinflow.v1.Inference/GenerateStream"
    )


def _quotable(body: Mapping[str, object]) -> str:
    """JSON that may stand between single quotes of a shell."""
    return json.dumps(body).replace("'", "\\u0027")
