"""What is read of processes."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from twinflow.cluster.chaos.processes import (
    Throttle,
    family,
    footprint,
    is_alive,
    listening_ports,
    send,
)


def test_a_family_is_found_and_can_be_ended() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as parent:
        while len(members := family(parent.pid)) < 2:
            assert parent.poll() is None
        (child,) = members.keys() - {parent.pid}
        assert members[child].parent == parent.pid
        assert members[child].name == ""
        assert is_alive(child)
        for pid in members:
            send(pid, signal.SIGKILL)
        assert parent.wait(20) == -signal.SIGKILL
    assert not is_alive(parent.pid)
    assert family(parent.pid) == {}
    assert footprint(parent.pid) is None
    send(parent.pid, signal.SIGKILL)


def test_a_process_is_slowed_down_and_let_go() -> None:
    """It answers all the time, and runs for good in the end."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as echo:
        assert echo.stdin is not None
        assert echo.stdout is not None
        throttle = Throttle(echo.pid, share=0.5, period_s=0.01)
        for _ in range(5):
            echo.stdin.write(b"x")
            echo.stdin.flush()
            assert echo.stdout.read(1) == b"x"
        throttle.release()
        state = (Path("/proc") / str(echo.pid) / "stat").read_text().rpartition(")")[2].split()[0]
        assert state != "T"


def test_ports_of_both_families_are_found() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        wanted = {four.getsockname()[1], six.getsockname()[1]}
        assert wanted <= set(listening_ports(os.getpid()))
    assert not wanted & set(listening_ports(os.getpid()))


def test_a_footprint() -> None:
    before = footprint(os.getpid())
    with socket.create_server(("127.0.0.1", 0)):
        during = footprint(os.getpid())
    assert before is not None
    assert during is not None
    assert during.fds == before.fds + 1
    assert during.rss_mib > 1
