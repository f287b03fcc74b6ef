"""`twinflow serve`: what reaches the launcher, and ports that are taken."""

import io
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.command_line import run_command

from twinflow.cluster.cli.commands.serve import complaints_about_ports, run
from twinflow.cluster.cli.parser import Invocation
from twinflow.cluster.cli.progress import ServeUI
from twinflow.cluster.config import ServeConfig
from twinflow.protos.errors import ConfigError


class Launcher:
    """Remembers what it was asked to start."""

    def __init__(self) -> None:
        self.started: list[ServeConfig] = []

    def __call__(self, config: ServeConfig, ui: ServeUI) -> int:
        ui.phase("Starting nothing")
        self.started.append(config)
        return 7


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def invocation(out: io.StringIO, **given: object) -> Invocation:
    return Invocation({"port": "0", "grpc_port": "0", **given}, [], {}, io.StringIO(), out)


def test_the_launcher_gets_the_configuration_and_sets_the_status() -> None:
    launcher, out = Launcher(), io.StringIO()
    assert run(invocation(out, model="small", mixed="1"), launcher) == 7
    assert [(config.model, config.mixed) for config in launcher.started] == [("small", 1)]
    assert "Starting nothing" in out.getvalue()


def test_nothing_starts_with_a_wrong_configuration() -> None:
    launcher = Launcher()
    with pytest.raises(ConfigError):
        run(invocation(io.StringIO(), model="small", block_size="3"), launcher)
    assert launcher.started == []


@pytest.mark.parametrize("flag", ["--port", "--grpc-port"])
def test_a_taken_port_is_named_before_anything_starts(flag: str, taken_port: int) -> None:
    other = {"--port": "--grpc-port", "--grpc-port": "--port"}[flag]
    ran = run_command("serve", "small", flag, str(taken_port), other, "0")
    assert ran.status == 2
    assert f"{flag} {taken_port}: cannot listen on 127.0.0.1" in ran.err
    assert "0 for a free one" in ran.err


def test_both_taken_ports_are_named(taken_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as second:
        config = ServeConfig(model="m", port=taken_port, grpc_port=second.getsockname()[1])
        assert len(complaints_about_ports(config)) == 2
    assert len(complaints_about_ports(config)) == 1


def test_a_port_whose_connections_wind_down_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            accepted.close()
    assert complaints_about_ports(ServeConfig(model="m", port=port, grpc_port=0)) == []


def test_certificates_that_are_not_there_are_named_before_anything_starts(tmp_path: Path) -> None:
    ports = ("--port", "0", "--grpc-port", "0")
    ran = run_command("serve", "m", *ports, "--internal-tls", str(tmp_path))
    assert ran.status == 2
    assert f"--internal-tls {tmp_path}/ca.crt: cannot be read" in ran.err


def test_an_unknown_host_is_named() -> None:
    (complaint,) = complaints_about_ports(ServeConfig(model="m", host="no-such-host.invalid"))
    assert complaint.startswith("--host no-such-host.invalid: cannot be resolved")
