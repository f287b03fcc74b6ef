"""Whoever asks while a deployment starts gets an answer."""

import socket
from pathlib import Path

import httpx
import pytest
from tests.support.deployments import START_S, Deployment, wait_until

BODY = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 2}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_requests_are_refused_until_they_are_served(tiny_model: Path) -> None:
    """With 503 and Retry-After, by a gateway that lives and says that it is not ready."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    deployment = Deployment(tiny_model, "--launcher", "local", "--port", str(port))
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:

            def answers() -> bool:
                try:
                    return http.get("/health").status_code == 200
                except httpx.ConnectError:
                    return False

            wait_until(answers, "the gateway to answer", START_S, lambda: deployment.log)
            ready = http.get("/ready")
            refused = http.post("/v1/completions", json=BODY)
            assert "Ready:" not in deployment.log  # else this was too late to see anything
            assert (ready.status_code, ready.json()["reason"]) == (503, "the server is starting")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
            assert refused.json()["error"]["message"] == "The server is starting."
            deployment.wait_ready()
            assert http.get("/ready").status_code == 200
            answer = http.post("/v1/completions", json=BODY)
            assert answer.json()["usage"]["completion_tokens"] == 2
        deployment.stop()
    finally:
        deployment.kill()
