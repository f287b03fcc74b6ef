"""Bytes that are not a good HTTP request (catalogue rows A10, A11, A35, A38 to A41, A45)."""

import json
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest
from tests.support.fake_backend import Behaviour
from tests.support.http_gateway import (
    CONFIG,
    PATIENCE_S,
    HttpGateway,
    assert_openai_error,
    chat_body,
    http_gateway,
    raw_post,
    read_all,
    status_of,
)

CHAT = "/v1/chat/completions"
BODY = json.dumps(chat_body(max_tokens=2)).encode()
JSON = {"content-type": "application/json"}
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\n"


def request(*lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def assert_refused(response: bytes, *statuses: int) -> None:
    """One answer in OpenAI's shape, and the connection closed."""
    assert status_of(response) in statuses, response[:300]
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    "size", [pytest.param(4 * 2**20 + 1, id="A10-one-over"), pytest.param(2**26, id="A10-64-MiB")]
)
def test_body_over_the_limit(gateway: HttpGateway, size: int) -> None:
    headers = {"content-type": "application/json"}
    response = gateway.request("POST", CHAT, content=b" " * size, headers=headers)
    assert_openai_error(response, 413, "payload_too_large")


def test_a10_body_at_the_limit_is_read(gateway: HttpGateway) -> None:
    body = BODY + b" " * (4 * 2**20 - len(BODY))
    headers = {"content-type": "application/json"}
    assert gateway.request("POST", CHAT, content=body, headers=headers).status_code == 200


def test_a10_declared_length_is_believed(gateway: HttpGateway) -> None:
    with gateway.connect() as connection:
        connection.sendall(request(HEAD + "Host: a", "Content-Length: 2147483648"))
        assert status_of(connection.recv(65536)) == 413


def test_a10_chunks_without_an_end(gateway: HttpGateway) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with gateway.connect() as connection:
        connection.sendall(request(HEAD + "Host: a", "Transfer-Encoding: chunked"))
        for _ in range(65):
            connection.sendall(chunk)
        assert status_of(connection.recv(65536)) == 413


@pytest.mark.slow
def test_a10_large_bodies_hold_nobody_up(gateway: HttpGateway) -> None:
    """The worst that fits: a million objects, errors by the hundred thousand."""
    many = ",".join(f'"{number:x}":1' for number in range(380_000))
    bodies = [
        f'{{"model":"tiny","messages":[{"{}," * 1_300_000}{{}}]}}',
        f'{{"model":"tiny","messages":[],"metadata":{{{many}}}}}',
        f'{{"model":"tiny","messages":[],"logit_bias":{{{many}}}}}',
    ]
    with ThreadPoolExecutor(len(bodies)) as pool:
        sent = [
            pool.submit(gateway.request, "POST", CHAT, content=body.encode(), headers=JSON)
            for body in bodies
        ]
        answered = 0
        while not all(one.done() for one in sent):
            assert gateway.get("/live").status_code == 200
            answered += 1
    assert answered > len(bodies)
    for one in sent:
        assert_openai_error(one.result(), 400)


def test_a10_all_bodies_together_are_bounded() -> None:
    """What has arrived counts: others may declare what they like, and send it slowly."""
    config = replace(CONFIG, max_bodies_bytes=1 << 20, body_timeout_s=60.0)
    with http_gateway(config=config) as gateway:
        head = request(HEAD + "Host: a", "Content-Length: 4000000")
        with ExitStack() as stack:
            stack.enter_context(gateway.connect()).sendall(head)
            sending: list[socket.socket] = []

            def arrived() -> bool:
                # A body that meets the one that asks is refused itself: it is sent again.
                if not sending or select.select(sending[-1:], [], [], 0)[0]:
                    sending.append(stack.enter_context(gateway.connect()))
                    sending[-1].sendall(head + b" " * (900 << 10))
                return refused(gateway, 200 << 10)

            gateway.wait_until(arrived, "the body to arrive")
            assert gateway.post(CHAT, chat_body(max_tokens=1)).status_code == 200
        gateway.wait_until(lambda: not refused(gateway, 200 << 10), "the body to go")
        rejected = {"reason": "rate_limit_exceeded"}
        assert gateway.metric("vllm:admission_rejections_total", **rejected) >= 1


def refused(gateway: HttpGateway, size: int) -> bool:
    """Whether there is no room for a body of that size."""
    response = gateway.request("POST", CHAT, content=b" " * size, headers=JSON)
    if response.status_code == 429:
        assert_openai_error(response, 429, "rate_limit_exceeded")
        assert response.headers["retry-after"] == "1"
        return True
    assert_openai_error(response, 400)
    return False


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, identity", "x"])
def test_a11_content_encoding(gateway: HttpGateway, encoding: str) -> None:
    response = gateway.post(CHAT, chat_body(), headers={"content-encoding": encoding})
    assert_openai_error(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("request_id", "status"),
    [
        pytest.param("a" * 128, 200, id="A35-longest"),
        pytest.param("Trace_1.2-x", 200, id="A35-all-kinds"),
        pytest.param("a" * 129, 400, id="A35-too-long"),
        pytest.param("", 400, id="A35-empty"),
        pytest.param("___decode_addr_1.2.3.4:5", 400, id="A35-address"),
        pytest.param("a b", 400, id="A35-space"),
        pytest.param("{evil}\\n", 400, id="A35-log"),
    ],
)
def test_request_id(gateway: HttpGateway, request_id: str, status: int) -> None:
    response = gateway.post(CHAT, chat_body(max_tokens=1), headers={"x-request-id": request_id})
    assert response.status_code == status
    if status == 200:
        assert response.headers["x-request-id"] == request_id
        assert request_id not in response.json()["id"]
        assert request_id not in gateway.backend.specs[-1].request_id
    else:
        assert response.headers["x-request-id"] != request_id


def test_a35_huge_request_id(gateway: HttpGateway) -> None:
    raw = raw_post(CHAT, BODY, "X-Request-Id: " + "a" * 1_000_000)
    assert_refused(gateway.exchange(raw), 431)


def test_a35_line_break_in_a_header(gateway: HttpGateway) -> None:
    assert_refused(gateway.exchange(raw_post(CHAT, BODY, "X-Request-Id: a\nEvil: 1")), 400)


@pytest.mark.parametrize(
    ("lines", "statuses"),
    [
        pytest.param(["Host: a/x?"], (400,), id="A38-host-with-path"),
        pytest.param(["Host: a b"], (400,), id="A38-host-with-space"),
        pytest.param(["Host: "], (400,), id="A38-host-empty"),
        pytest.param(["Host: a@b"], (400,), id="A38-host-with-user"),
        pytest.param([], (400,), id="A38-no-host"),
        pytest.param(["Host: a", "Host: b"], (400,), id="A38-two-hosts"),
        pytest.param(["Host: " + "a" * 300], (400,), id="A38-host-long"),
        pytest.param(["Host: a", "Content-Length: 2", "Transfer-Encoding: chunked"], (400,),
                     id="A39-length-and-chunks"),
        pytest.param(["Host: a", "Transfer-Encoding: chunked", "Content-Length: 2"], (400,),
                     id="A39-chunks-and-length"),
        pytest.param(["Host: a", "Content-Length: 2", "Content-Length: 2"], (400,),
                     id="A39-two-lengths"),
        pytest.param(["Host: a", "Content-Length: -2"], (400,), id="A39-negative-length"),
        pytest.param(["Host: a", "Content-Length: 2, 2"], (400,), id="A39-length-list"),
        pytest.param(["Host: a", "Transfer-Encoding: gzip, chunked"], (400,), id="A39-coding"),
        pytest.param(["Host: a", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
                     (400,), id="A39-coding-twice"),
        pytest.param(["Host: a", "X: a", " folded"], (400,), id="A39-folded"),
        pytest.param(["Host: a", "X : a"], (400,), id="A39-space-before-colon"),
        pytest.param(["Host: a", "X: a\x00b"], (400,), id="A39-nul"),
        pytest.param(["Host: a", "X: " + "a" * 1_000_000], (431,), id="A40-header-1-MB"),
        pytest.param(["Host: a", *["X: a"] * 10_000], (431,), id="A40-10000-headers"),
        pytest.param(["Host: a", *[f"X{n}: a" for n in range(150)]], (431,), id="A40-150"),
    ],
)  # fmt: skip
def test_bad_head_is_refused(
    gateway: HttpGateway, lines: list[str], statuses: tuple[int, ...]
) -> None:
    assert_refused(gateway.exchange(request(HEAD[:-2], *lines, body=b"{}")), *statuses)


def test_a39_bad_chunk_size(gateway: HttpGateway) -> None:
    head = request(HEAD + "Host: a", "Transfer-Encoding: chunked")
    assert_refused(gateway.exchange(head + b"ZZ\r\n{}\r\n0\r\n\r\n"), 400)


def test_a39_bare_line_feeds(gateway: HttpGateway) -> None:
    assert_refused(gateway.exchange(b"GET /health HTTP/1.1\nHost: a\n\n"), 400)


def test_a40_long_url(gateway: HttpGateway) -> None:
    raw = request(f"GET /{'a' * 100_000} HTTP/1.1", "Host: a")
    assert_refused(gateway.exchange(raw), 414)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        pytest.param("http://other/v1/models", 200, id="A38-absolute"),
        pytest.param("//v1/models", 404, id="A38-two-slashes"),
        pytest.param("/v1/../metrics", 404, id="A38-dots"),
        pytest.param("/v1/%2e%2e/metrics", 404, id="A38-encoded-dots"),
        pytest.param("/v1/models/", 404, id="A38-trailing-slash"),
        pytest.param("/health?x#/metrics", 200, id="A38-fragment"),
        pytest.param("*", 404, id="A38-asterisk"),
    ],
)
def test_odd_target(gateway: HttpGateway, target: str, status: int) -> None:
    raw = request(f"GET {target} HTTP/1.1", "Host: a", "Connection: close")
    assert status_of(gateway.exchange(raw)) == status


def test_a45_http2_prior_knowledge(gateway: HttpGateway) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    assert_refused(gateway.exchange(preface), 400, 505)


def test_a45_random_bytes_and_tls(gateway: HttpGateway) -> None:
    for garbage in (bytes(range(256)), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
        assert_refused(gateway.exchange(garbage), 400)


def test_a45_pipelined_requests_are_answered_in_order(gateway: HttpGateway) -> None:
    one = request("GET /version HTTP/1.1", "Host: a")
    two = request("GET /nowhere HTTP/1.1", "Host: a")
    last = request("GET /live HTTP/1.1", "Host: a", "Connection: close")
    response = gateway.exchange(one + raw_post(CHAT, BODY).replace(b"close", b"keep-alive") + two
                                + last)  # fmt: skip
    statuses = [int(part[:3]) for part in response.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 200, 404, 200]


def test_a45_expect_continue(gateway: HttpGateway) -> None:
    head = HEAD + f"Host: a\r\nContent-Length: {len(BODY)}\r\nConnection: close"
    with gateway.connect() as connection:
        connection.sendall(request(head, "Expect: 100-continue"))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert status_of(read_all(connection)) == 200


def test_a45_expect_continue_is_not_granted_to_strangers() -> None:
    with http_gateway(keys=["secret"]) as gateway:
        head = HEAD + "Host: a\r\nContent-Length: 2\r\nConnection: close\r\nExpect: 100-continue"
        assert status_of(gateway.exchange(request(head))) == 401


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_a45_upgrade_is_ignored(gateway: HttpGateway, protocol: str) -> None:
    upgrade = ["Connection: Upgrade, HTTP2-Settings", f"Upgrade: {protocol}", "HTTP2-Settings: AA"]
    last = raw_post(CHAT, BODY, *upgrade)
    first = last.replace(b"Connection: close\r\n", b"")
    with gateway.connect() as connection:
        connection.sendall(first)
        connection.sendall(last)
        answers = read_all(connection).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"200"]


@pytest.fixture(scope="module")
def impatient() -> Iterator[HttpGateway]:
    limits = replace(CONFIG, head_timeout_s=0.2, body_timeout_s=0.2, keep_alive_s=0.2)
    with http_gateway(config=limits) as running:
        yield running


def drip(connection: socket.socket, data: bytes) -> bytes:
    """Send a byte at a time until the server has had enough; its last words."""
    try:
        for byte in data:
            connection.sendall(bytes((byte,)))
            time.sleep(0.02)
    except (BrokenPipeError, ConnectionResetError):
        pass
    return read_all(connection)


def test_a41_slow_head(impatient: HttpGateway) -> None:
    with impatient.connect() as connection:
        assert_refused(drip(connection, request("GET /live HTTP/1.1", "X: " + "y" * 80)), 408)


def test_a41_slow_body(impatient: HttpGateway) -> None:
    with impatient.connect() as connection:
        connection.sendall(request(HEAD + "Host: a", f"Content-Length: {len(BODY)}"))
        assert_refused(drip(connection, BODY[:-1]), 408)


def test_a41_slow_body_nobody_waits_for(impatient: HttpGateway) -> None:
    with impatient.connect() as connection:
        connection.sendall(request("POST /nowhere HTTP/1.1", "Host: a", "Content-Length: 1000"))
        response = drip(connection, b"x" * 500)
    assert response.count(b"HTTP/1.1") == 1
    assert status_of(response) == 404


def test_a45_pipelined_body_may_take_as_long_as_the_answers_before_it() -> None:
    limits = replace(CONFIG, body_timeout_s=0.3)
    with http_gateway(Behaviour(first_delay_s=1.0), config=limits) as gateway:
        first = raw_post(CHAT, BODY).replace(b"Connection: close\r\n", b"")
        second = raw_post(CHAT, BODY)
        with gateway.connect() as connection:
            connection.sendall(first + second[:-5])
            gateway.wait_until(lambda: gateway.backend.outcomes["finished"] == 1, "the first")
            connection.sendall(second[-5:])
            answers = read_all(connection).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"200"]


def test_a41_idle_connections_do_not_stay(impatient: HttpGateway) -> None:
    connections = [impatient.connect() for _ in range(200)]
    assert impatient.get("/live").status_code == 200
    assert [connection.recv(1) for connection in connections] == [b""] * 200
    for connection in connections:
        connection.close()


def test_a41_idle_after_a_response(impatient: HttpGateway) -> None:
    with impatient.connect() as connection:
        connection.sendall(request("GET /live HTTP/1.1", "Host: a"))
        assert status_of(read_all(connection)) == 200  # returns when the server has closed


def test_a41_request_that_came_while_nobody_looked() -> None:
    """A process that stood still for longer than the limits has not been kept waiting."""
    limits = replace(CONFIG, head_timeout_s=0.2, body_timeout_s=0.2, keep_alive_s=0.2)
    with http_gateway(config=limits) as gateway, gateway.connect() as connection:
        standing, sent = gateway.stand_still_once_idle(0.3)
        connection.sendall(raw_post(CHAT, BODY).replace(b"Connection: close\r\n", b""))
        assert standing.wait(PATIENCE_S)
        connection.sendall(raw_post(CHAT, BODY))
        sent.set()
        answers = read_all(connection).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"200"]


def test_a46_connections_over_the_limit() -> None:
    with http_gateway(config=replace(CONFIG, max_connections=3)) as gateway:
        held = [gateway.connect() for _ in range(3)]
        gateway.wait_until(lambda: gateway.server_connections == 3, "the connections")
        refused = gateway.exchange(request("GET /live HTTP/1.1", "Host: a"))
        assert_refused(refused, 429)
        assert b"retry-after: 1" in refused
        for connection in held:
            connection.close()
        gateway.wait_until(lambda: gateway.server_connections == 0, "them to close")
        assert gateway.get("/live").status_code == 200
