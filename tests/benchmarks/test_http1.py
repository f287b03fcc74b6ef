"""The HTTP client and the load client against scripted servers on real sockets."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
from benchmarks.load.client import LoadClient, first_model, get_json
from benchmarks.load.http1 import ConnectionPool, Endpoint
from benchmarks.load.prompts import Api
from benchmarks.load.records import Kind, Outcome, RequestRecord
from tests.support.load import plan, prepared

from twinflow.protos.errors import ConfigError, Unavailable

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
TOKEN = b'data: {"choices":[{"text":"x"}]}\n\n'
DONE = b"data: [DONE]\n\n"

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
GOOD = CHUNKED + b"".join(_chunk(TOKEN) for _ in range(4)) + _chunk(DONE) + b"0\r\n\r\n"


class ScriptedServer:
    """Answers its connections' requests with scripts, in the order in which they come."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        self._scripts = list(scripts)
        self._writers: set[asyncio.StreamWriter] = set()
        self.requests: list[bytes] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while self._scripts and not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = [h for h in head.split(b"\r\n") if h.startswith(b"Content-Length")]
                body = await reader.readexactly(int(length[0].split()[1])) if length else b""
                self.requests.append(head + body)
                await self._scripts.pop(0)(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self._writers.discard(writer)

    async def stop(self) -> None:
        """Drop every connection and wait for its handler."""
        for writer in self._writers:
            writer.transport.abort()
        while self._writers:
            await asyncio.sleep(0.001)


def says(*pieces: bytes, then_close: bool = False) -> Script:
    """A script that writes pieces one by one, each in a packet of its own."""

    async def script(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)
        if then_close:
            writer.close()

    return script


@asynccontextmanager
async def _serving(*scripts: Script) -> AsyncIterator[tuple[ConnectionPool, ScriptedServer]]:
    scripted = ScriptedServer(scripts)
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = ConnectionPool(Endpoint.parse(f"http://127.0.0.1:{port}"), time.monotonic)
    try:
        yield pool, scripted
    finally:
        pool.close()
        server.close()
        await scripted.stop()
    assert pool.open_connections == 0


async def _send(
    pool: ConnectionPool, kind: Kind = Kind.GOOD, hang_up_after: int | None = None, limit: float = 5
) -> RequestRecord:
    request = prepared(plan(kind=kind, hang_up_after=hang_up_after))
    client = LoadClient(pool, Api.COMPLETIONS, limit, time.monotonic)
    return await client.send(request, time.monotonic())


@pytest.mark.parametrize("size", [1, 5, len(GOOD)])
async def test_a_chunked_stream_is_read_wherever_it_is_cut(size: int) -> None:
    pieces = [GOOD[start : start + size] for start in range(0, len(GOOD), size)]
    async with _serving(says(*pieces)) as (pool, server):
        record = await _send(pool)
    assert (record.outcome, record.tokens, record.status) == (Outcome.OK, 4, 200)
    assert len(record.token_times_s) == 4
    assert list(record.token_times_s) == sorted(record.token_times_s)
    assert record.started_s <= record.token_times_s[0] <= record.finished_s
    assert server.requests[0].startswith(b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"X-Request-Id: test-0\r\n" in server.requests[0]
    assert server.requests[0].endswith(b"\r\n\r\n{}")


async def test_connections_are_kept_and_used_again() -> None:
    async with _serving(says(GOOD), says(GOOD), says(GOOD)) as (pool, server):
        records = [await _send(pool) for _ in range(3)]
        assert pool.open_connections == 1
    assert [record.outcome for record in records] == [Outcome.OK] * 3
    assert server.connections == 1


async def test_concurrent_requests_have_connections_of_their_own() -> None:
    slow = says(CHUNKED, *(_chunk(TOKEN) for _ in range(4)), _chunk(DONE) + b"0\r\n\r\n")
    async with _serving(slow, slow, slow) as (pool, server):
        records = await asyncio.gather(*(_send(pool) for _ in range(3)))
    assert [record.outcome for record in records] == [Outcome.OK] * 3
    assert server.connections == 3


async def test_an_idle_connection_that_the_server_closed_is_replaced() -> None:
    async def closes_without_a_word(writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with _serving(says(GOOD), closes_without_a_word, says(GOOD)) as (pool, server):
        first, second = await _send(pool), await _send(pool)
    assert (first.outcome, second.outcome) == (Outcome.OK, Outcome.OK)
    assert (server.connections, len(server.requests)) == (2, 3)


async def test_a_new_connection_closed_without_an_answer_is_a_failure() -> None:
    async with _serving(says(then_close=True)) as (pool, server):
        record = await _send(pool)
    assert record.failure == "closed"
    assert "before the response head" in record.detail
    assert len(server.requests) == 1


async def test_an_early_close_is_a_failure_and_its_tokens_are_kept() -> None:
    async with _serving(says(CHUNKED + _chunk(TOKEN), _chunk(TOKEN), then_close=True)) as (pool, _):
        record = await _send(pool)
    assert (record.outcome, record.failure) == (Outcome.FAILED, "closed")
    assert len(record.token_times_s) == 2


async def test_a_body_that_ends_with_the_connection_is_read() -> None:
    whole = HEAD + b"\r\n" + TOKEN * 4 + DONE
    async with _serving(says(whole, then_close=True)) as (pool, _):
        record = await _send(pool)
        assert pool.open_connections == 0
    assert (record.outcome, record.tokens) == (Outcome.OK, 4)


async def test_a_rejection_keeps_its_retry_after() -> None:
    body = b'{"error":{"message":"full"}}'
    answer = b"HTTP/1.1 503 Busy\r\nRetry-After: 3\r\nContent-Length: %d\r\n\r\n%b"
    async with _serving(says(answer % (len(body), body)), says(GOOD)) as (pool, server):
        rejected, accepted = await _send(pool), await _send(pool)
    assert (rejected.outcome, rejected.status) == (Outcome.REJECTED, 503)
    assert (rejected.detail, rejected.extra["retry_after"]) == ("full", "3")
    assert accepted.outcome is Outcome.OK
    assert server.connections == 1


async def test_an_answer_that_is_not_http_is_malformed() -> None:
    async with _serving(says(b"SSH-2.0-OpenSSH\r\n")) as (pool, _):
        record = await _send(pool)
    assert (record.outcome, record.failure) == (Outcome.FAILED, "malformed")


async def test_hanging_up_closes_the_connection() -> None:
    closed = asyncio.Event()

    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        try:
            while True:
                writer.write(_chunk(TOKEN))
                await writer.drain()
                await asyncio.sleep(0.001)
        except ConnectionError:
            closed.set()
            raise

    async with _serving(endless) as (pool, _):
        record = await _send(pool, Kind.DISCONNECT, hang_up_after=3)
        await asyncio.wait_for(closed.wait(), 5)
    assert record.outcome is Outcome.DISCONNECTED
    assert record.tokens == 3


async def test_a_deadline_names_what_was_awaited() -> None:
    async def stalls(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + _chunk(TOKEN))
        while not writer.is_closing():
            await asyncio.sleep(0.01)

    async with _serving(stalls) as (pool, _):
        record = await _send(pool, limit=0.2)
        assert pool.open_connections == 0
    assert (record.outcome, record.failure) == (Outcome.FAILED, "timeout")
    assert record.detail == "the next token did not come within 0.2 s"


async def test_no_server_is_a_failure_to_connect() -> None:
    async with _serving() as (pool, _):
        pass
    record = await _send(pool)
    assert (record.outcome, record.failure, record.status) == (Outcome.FAILED, "connect", None)


def _json(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


async def test_the_first_listed_model_is_found() -> None:
    async with _serving(says(_json(200, b'{"data":[{"id":"m1"},{"id":"m2"}]}'))) as (pool, server):
        assert await first_model(pool) == "m1"
    assert server.requests[0].startswith(b"GET /v1/models HTTP/1.1\r\n")


@pytest.mark.parametrize("body", [b'{"data":[]}', b"{}", b"[1]"])
async def test_an_empty_listing_asks_for_the_flag(body: bytes) -> None:
    async with _serving(says(_json(200, body))) as (pool, _):
        with pytest.raises(Unavailable, match="--model"):
            await first_model(pool)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (_json(503, b'{"error":{"message":"starting"}}'), "answered 503: starting"),
        (_json(200, b"<html>"), "did not answer with JSON"),
    ],
)
async def test_a_lookup_that_fails_says_why(answer: bytes, message: str) -> None:
    async with _serving(says(answer)) as (pool, _):
        with pytest.raises(Unavailable, match=message):
            await get_json(pool, "/truth")


async def test_a_lookup_without_server_says_where() -> None:
    async with _serving() as (pool, _):
        pass
    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:\d+/truth cannot be reached"):
        await get_json(pool, "/truth")


@pytest.mark.parametrize(
    ("url", "host", "port", "base", "tls"),
    [
        ("http://localhost:8000", "localhost", 8000, "", False),
        ("http://h/v1", "h", 80, "", False),
        ("https://h/base/v1/", "h", 443, "/base", True),
        ("http://[::1]:9", "::1", 9, "", False),
    ],
)
def test_urls(url: str, host: str, port: int, base: str, tls: bool) -> None:
    endpoint = Endpoint.parse(url)
    assert (endpoint.host, endpoint.port, endpoint.base_path) == (host, port, base)
    assert (endpoint.tls is not None) == tls


def test_an_ipv6_host_is_bracketed() -> None:
    assert b"Host: [::1]:9\r\n" in Endpoint.parse("http://[::1]:9").get("/x")


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://h", "http://", "http://h:x", "http://u:p@h", "http://h?a=1"]
)
def test_unusable_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Endpoint.parse(url)


def test_the_key_is_sent_and_not_shown() -> None:
    endpoint = Endpoint.parse("http://h", "secret")
    assert b"Authorization: Bearer secret\r\n" in endpoint.post("/x", b"", "id")
    assert "secret" not in repr(endpoint)
