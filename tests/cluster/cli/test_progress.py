"""What is shown while serving starts, with and without a terminal."""

import io
import json
import shlex
from collections.abc import Iterator
from dataclasses import replace

from tests.support.command_line import Terminal

from twinflow.cluster.cli.progress import ReadySummary, TerminalUI, describe

SUMMARY = ReadySummary(
    model="it's small",
    http_url="http://127.0.0.1:8001",
    grpc_target="127.0.0.1:50052",
    pools={"prefill": ("prefill-0",), "decode": ("decode-0", "decode-1"), "mixed": ()},
)


class Clock:
    """Goes on by a second each time it is read."""

    def __init__(self) -> None:
        self._ticks: Iterator[float] = iter(map(float, range(100)))

    def __call__(self) -> float:
        return next(self._ticks)


def test_a_line_per_phase_with_the_seconds_since_the_start() -> None:
    stream = io.StringIO()
    ui = TerminalUI(stream, Clock())
    ui.phase("Starting Ray")
    ui.progress(1, 2)
    ui.phase("Starting workers", "prefill-0")
    ui.message("A note")
    assert stream.getvalue().splitlines() == [
        "[   1.0 s] Starting Ray",
        "[   2.0 s] Starting workers: prefill-0",
        "[   3.0 s] A note",
    ]


def test_on_a_terminal_progress_is_rewritten_in_place() -> None:
    stream = Terminal()
    ui = TerminalUI(stream, Clock())
    ui.phase("Loading")
    for done in (0, 1, 1, 2, 2):
        ui.progress(done, 2)
    ui.phase("Next")
    assert stream.getvalue() == (
        "[   1.0 s] Loading\n\r[   2.0 s]   0%\r[   3.0 s]  50%\r[   4.0 s] 100%\n[   5.0 s] Next\n"
    )


def test_progress_of_nothing_is_not_shown() -> None:
    stream = Terminal()
    TerminalUI(stream, Clock()).progress(0, 0)
    assert stream.getvalue() == ""


def test_the_summary_names_endpoints_and_pools() -> None:
    stream = io.StringIO()
    TerminalUI(stream, Clock()).ready(SUMMARY)
    text = stream.getvalue()
    assert "Ready: it's small" in text
    assert "http://127.0.0.1:8001/v1" in text and "127.0.0.1:50052" in text
    assert "1 worker: prefill-0" in text and "2 workers: decode-0, decode-1" in text
    assert "mixed" not in text


def test_the_summary_counts_ranks() -> None:
    text = describe(replace(SUMMARY, ranks={"prefill": 1, "decode": 4}))
    assert "1 worker: prefill-0" in text
    assert "2 workers of 4 ranks: decode-0, decode-1" in text


def commands(summary: ReadySummary) -> list[list[str]]:
    """The words of the curl and grpcurl lines, as a shell reads them."""
    lines = describe(summary).splitlines()
    return [shlex.split(line) for line in lines if line.startswith(("curl", "grpcurl"))]


def test_the_commands_survive_a_shell() -> None:
    curl, grpcurl = commands(SUMMARY)
    assert curl[2] == "http://127.0.0.1:8001/v1/chat/completions"
    assert json.loads(curl[-1])["model"] == "it's small"
    assert json.loads(grpcurl[grpcurl.index("-d") + 1])["input"]["model"] == "it's small"
    assert grpcurl[-2:] == ["127.0.0.1:50052", "twinflow.v1.Inference/GenerateStream"]


def test_a_needed_key_is_taken_from_the_environment() -> None:
    guarded = ReadySummary(
        model="m", http_url="http://h:1", grpc_target="h:2", pools={}, needs_key=True
    )
    for words in commands(guarded):
        assert "authorization: Bearer $TWINFLOW_API_KEY" in words
    assert not any("authorization" in word for words in commands(SUMMARY) for word in words)
