"""The process in which a chat template is rendered, so that it can be limited and killed.

Run as `python -m twinflow.runtime.text.template_process` by `template_child`, with frames of
`template_wire` on standard input and output. Before it sees the template it gives up memory
beyond a limit and the right to open or write files. An alarm ends it should a rendering outlive
its parent. It ends when standard input does.
"""

import resource
import signal
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any, BinaryIO

import jinja2

from twinflow.runtime.text.template_engine import OutputTooLong, TemplateEngine, TemplateRefusal
from twinflow.runtime.text.template_wire import HEADER, decode, encode

_PREPARE_S = 10.0


def main() -> None:
    """Serve one parent until it closes standard input."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    settings = _read(source)
    if settings is None:
        return
    _warm_up()
    confine(settings["memory_bytes"])
    signal.setitimer(signal.ITIMER_REAL, _PREPARE_S)
    try:
        engine = TemplateEngine(settings["source"], settings["special_tokens"])
    except (jinja2.TemplateError, RecursionError, MemoryError) as error:
        _write(sink, {"error": str(error) or type(error).__name__})
        return
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    _write(sink, {})
    while (request := _read(source)) is not None:
        # Twice the parent's patience: only counts if the parent is gone.
        signal.setitimer(signal.ITIMER_REAL, 2 * settings["time_s"])
        _answer(engine, request, sink)
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def confine(memory_bytes: int) -> None:
    """Limit memory, and forbid opening files, writing to files and dumping core, for good.

    A limit that the platform does not know is skipped; the parent's time limit holds everywhere.
    """
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):
            continue


def _warm_up() -> None:
    """Make Python load what it loads on first use: later it cannot open files."""
    engine = TemplateEngine("{{ strftime_now('%B') | tojson }}{{ raise_exception('') }}", {})
    try:
        engine.render([], add_generation_prompt=True, now=datetime(2000, 1, 1))
    except TemplateRefusal:
        return


def _answer(engine: TemplateEngine, request: Mapping[str, Any], sink: BinaryIO) -> None:
    try:
        text = engine.render(
            request["messages"],
            add_generation_prompt=request["add_generation_prompt"],
            now=datetime.fromisoformat(request["now"]),
            max_chars=request["max_chars"],
        )
        reply = encode({"text": text})
    except TemplateRefusal as error:
        reply = encode({"refusal": str(error).encode(errors="replace").decode()})
    except OutputTooLong:
        reply = encode({"error": "its output is too long"})
    except MemoryError:
        reply = encode({"error": "it took too much memory"})
    except Exception:  # noqa: BLE001  a template may raise anything; it stays in this process
        reply = encode({"error": "it does not fit the messages"})
    sink.write(reply)
    sink.flush()


def _read(source: BinaryIO) -> dict[str, Any] | None:
    header = source.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    body = source.read(length)
    return decode(body) if len(body) == length else None


def _write(sink: BinaryIO, message: Mapping[str, object]) -> None:
    sink.write(encode(message))
    sink.flush()


if __name__ == "__main__":
    main()
