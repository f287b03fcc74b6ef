"""A Ray cluster of several nodes on this machine, each at a loopback address of its own.

Nodes are `ray start` commands, as on real machines; they ask for a token, and end with the test.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

START_S = 90.0
STOP_S = 40.0
_STARTED = "Ray runtime started"
_HEAD = "127.0.0.10"


def token_environment() -> dict[str, str]:
    """What nodes and drivers of one cluster have in common."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def ray_nodes(
    directory: Path, environ: Mapping[str, str], pools: Sequence[Mapping[str, int]]
) -> Iterator[str]:
    """A head that takes no workers, and a node for each of `pools`; gives the head's address.

    Args:
        directory: for Ray's files; short, because sockets are in it.
        environ: beyond the one of the test.
        pools: resources that each node declares.
    """
    address = f"{_HEAD}:{_free_port()}"
    head = ["--head", f"--port={address.partition(':')[2]}", f"--temp-dir={directory}/r"]
    head += ["--include-dashboard=false", "--num-cpus=0", "--num-gpus=0"]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes.append(_start(directory / "head", environ, [*head, f"--node-ip-address={_HEAD}"]))
        for number, resources in enumerate(pools, start=11):
            arguments = [f"--address={address}", f"--node-ip-address=127.0.0.{number}"]
            arguments += ["--num-cpus=1", "--num-gpus=0", f"--resources={json.dumps(resources)}"]
            # One after the other: nodes of a machine name their sockets by what is there.
            processes.append(_start(directory / str(number), environ, arguments))
        yield address
    finally:
        for process in reversed(processes):
            _stop(process)


def _start(
    log: Path, environ: Mapping[str, str], arguments: Sequence[str]
) -> "subprocess.Popen[bytes]":
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start"]
    common = ["--block", "--disable-usage-stats", "--object-store-memory=80000000"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*ray, *arguments, *common],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environ},
            start_new_session=True,
        )
    end = time.monotonic() + START_S
    while _STARTED not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > end:
            _stop(process)
            raise AssertionError(
                f"ray start {arguments}: {log.read_text(errors='replace')[-2000:]}"
            )
        time.sleep(0.1)
    return process


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HEAD, 0))
        port: int = probe.getsockname()[1]
        return port
