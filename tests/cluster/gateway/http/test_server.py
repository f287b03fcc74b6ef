"""Listening, and the catalogue as a whole."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.http_gateway import CONFIG, HttpGateway, http_gateway

from twinflow.protos.errors import ConfigError


def test_a_taken_port_is_named(gateway: HttpGateway) -> None:
    port = gateway.config.port
    message = rf"127\.0\.0\.1:{port} \(--host, --port\): .*in use"
    with (
        pytest.raises(ConfigError, match=message),
        http_gateway(config=replace(CONFIG, port=port)),
    ):
        pass


def test_it_listens_where_it_is_told_and_only_there() -> None:
    config = replace(CONFIG, host="127.0.0.2")
    with http_gateway(config=config) as gateway, pytest.raises(ConnectionRefusedError):
        gateway.connect()


def test_every_row_of_the_catalogue_has_a_test() -> None:
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    found = re.findall(r'"A(\d+)["-]|def test_a(\d+)_', sources)
    assert {int(a or b) for a, b in found} >= set(range(1, 53))
