"""What is read of a gateway's `/ready`, whatever answers there."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from twinflow.cluster.launch.readiness import missing_for_readiness


@contextmanager
def http_server(status: int, body: bytes) -> Iterator[str]:
    """Answers every request alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "missing"),
    [
        (200, b'{"ready": true, "reason": "", "pairs": []}', ""),
        (503, b'{"ready": false, "reason": "decode-0: gone", "pairs": []}', "decode-0: gone"),
        (500, b"<html>", "http://ADDRESS/ready answers 500"),
    ],
)
def test_what_a_gateway_answers(status: int, body: bytes, missing: str) -> None:
    with http_server(status, body) as address:
        assert missing_for_readiness(address) == missing.replace("ADDRESS", address)


def test_a_gateway_that_does_not_answer() -> None:
    assert missing_for_readiness("127.0.0.1:1").startswith("http://127.0.0.1:1/ready does not")
