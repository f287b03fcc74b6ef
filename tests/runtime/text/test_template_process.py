"""The rendering process without its parent: what it gives up, and when it ends."""

import signal
import subprocess
import sys

import pytest

from twinflow.runtime.text.template_wire import HEADER, decode, encode

MODULE = "twinflow.runtime.text.template_process"
SETTINGS = {"source": "{{ messages }}", "special_tokens": {}, "memory_bytes": 1 << 29, "time_s": 1}
REQUEST = {
    "messages": [],
    "add_generation_prompt": True,
    "now": "2026-03-09T00:00:00",
    "max_chars": 100,
}


def test_it_ends_with_standard_input() -> None:
    frames = encode(SETTINGS) + encode(REQUEST)
    run = subprocess.run([sys.executable, "-m", MODULE], input=frames, capture_output=True)
    ready, answer = run.stdout[:6], run.stdout[6:]
    assert (run.returncode, run.stderr) == (0, b"")
    assert decode(ready[HEADER.size :]) == {}
    assert decode(answer[HEADER.size :]) == {"text": "[]"}


@pytest.mark.parametrize("frames", [b"", b"\0\0", HEADER.pack(9) + b"{}"])
def test_a_broken_frame_ends_it_quietly(frames: bytes) -> None:
    run = subprocess.run([sys.executable, "-m", MODULE], input=frames, capture_output=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")


def test_an_endless_rendering_does_not_outlive_its_parent() -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    settings = {**SETTINGS, "source": endless, "time_s": 0.1}
    frames = encode(settings) + encode(REQUEST)
    run = subprocess.run([sys.executable, "-m", MODULE], input=frames, capture_output=True)
    assert run.returncode == -signal.SIGALRM


def test_a_confined_process_opens_and_writes_nothing() -> None:
    script = (
        f"from {MODULE} import confine\n"
        "confine(1 << 29)\n"
        "read, write = lambda: open('/etc/passwd'), lambda: open('x', 'w')\n"
        "for action in (read, write, lambda: 'x' * 10**9):\n"
        "    try:\n"
        "        action()\n"
        "    except (OSError, MemoryError) as error:\n"
        "        print(type(error).__name__)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout.split() == ["OSError", "OSError", "MemoryError"]
