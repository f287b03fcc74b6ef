"""One gateway for all tests of a module that do not change its behaviour; what is logged."""

from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog
from tests.support.http_gateway import HttpGateway, chat_body, http_gateway


@pytest.fixture(scope="module")
def gateway() -> Iterator[HttpGateway]:
    """A gateway that must still answer when the module's tests are through with it."""
    with http_gateway() as running:
        yield running
        assert running.post("/v1/chat/completions", chat_body(max_tokens=2)).status_code == 200


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    """Events that were logged; without them, structlog would draw tracebacks for seconds."""
    with structlog.testing.capture_logs() as events:
        yield events
