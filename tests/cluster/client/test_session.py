"""Where a client goes, and what it refuses to do."""

from typing import Any

import pytest

from twinflow import AsyncClient, Client
from twinflow.cluster.client.session import Session, Tls, is_loopback
from twinflow.protos.errors import ConfigError


@pytest.mark.parametrize(
    "target",
    [
        "localhost:50051",
        "localhost",
        "127.0.0.1:50051",
        "127.8.9.1:1",
        "[::1]:50051",
        "dns:///localhost:50051",
        "dns:localhost:50051",
        "ipv4:127.0.0.1:50051",
        "ipv6:[::1]:50051",
        "unix:/run/twinflow.sock",
        "unix:///run/twinflow.sock",
    ],
)
def test_loopback_targets(target: str) -> None:
    assert is_loopback(target)


@pytest.mark.parametrize(
    "target",
    [
        "gpu-box:50051",
        "10.0.0.1:50051",
        "127.0.0.1.evil.example:50051",
        "localhost.evil.example:50051",
        "dns://8.8.8.8/gpu-box:50051",
        "ipv4:127.0.0.1:50051,10.0.0.1:50051",
        "[2001:db8::1]:50051",
        "0.0.0.0:50051",
        "",
    ],
)
def test_other_targets_need_tls_or_consent(target: str) -> None:
    assert not is_loopback(target)
    with pytest.raises(ConfigError, match="insecure=True"):
        Session(target=target)
    assert Session(target=target, insecure=True)
    assert Session(target=target, tls=Tls())


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_clients_refuse_clear_text_to_other_machines(client: Any) -> None:
    with pytest.raises(ConfigError, match="gpu-box:50051"):
        client("gpu-box:50051", api_key="secret")


@pytest.mark.parametrize("name", ["timeout_s", "connect_timeout_s"])
def test_timeouts_are_above_zero(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Session(target="localhost:1", **{name: 0.0})  # type: ignore[arg-type]


def test_a_client_certificate_has_a_key() -> None:
    with pytest.raises(ConfigError, match="private_key"):
        Tls(certificate_chain=b"pem")


def test_secrets_are_not_shown() -> None:
    tls = Tls(certificate_chain=b"chain", private_key=b"hush")
    assert "hush" not in repr(Session(target="localhost:1", api_key="hush", tls=tls))
