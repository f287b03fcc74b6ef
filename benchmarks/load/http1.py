"""A small HTTP/1.1 client for timing: requests in, timestamped body bytes out.

Bytes are stamped in the protocol callback that receives them, before anything is parsed and without
waking a task for every chunk. Parsing of heads and chunked bodies is llhttp's, through httptools.
It knows nothing of completions, does not follow redirects and does not decompress.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from benchmarks.load.stream import End
from twinflow.protos.errors import ConfigError

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, and how to write requests to it.

    Attributes:
        host: name or address.
        port: TCP port.
        base_path: what comes before `/v1`, without a trailing slash.
        tls: certificate rules; None for plain HTTP.
        api_key: sent as a bearer token; empty for none.
    """

    host: str
    port: int
    base_path: str = ""
    tls: ssl.SSLContext | None = None
    api_key: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str, api_key: str = "") -> "Endpoint":
        """Read `http[s]://host[:port][/base]`; a trailing /v1 is accepted and left out."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(f"URL {url!r} must look like http://host:port")
        if parts.username or parts.query or parts.fragment:
            raise ConfigError("a URL must not hold credentials, a query or a fragment")
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"URL {url!r}: {error}") from error
        secure = parts.scheme == "https"
        return cls(
            host=parts.hostname,
            port=port or (443 if secure else 80),
            base_path=parts.path.rstrip("/").removesuffix("/v1"),
            tls=ssl.create_default_context() if secure else None,
            api_key=api_key,
        )

    @property
    def url(self) -> str:
        """Where it is, for messages."""
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{self._authority}{self.base_path}"

    def get(self, path: str) -> bytes:
        """The bytes of a GET request."""
        return self._head("GET", path) + b"\r\n"

    def post(self, path: str, body: bytes, request_id: str) -> bytes:
        """The bytes of a JSON POST request."""
        fields = (
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"X-Request-Id: {request_id}\r\n\r\n"
        )
        return self._head("POST", path) + fields.encode() + body

    @property
    def _authority(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{name}:{self.port}"

    def _head(self, method: str, path: str) -> bytes:
        key = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        return (
            f"{method} {self.base_path}{path} HTTP/1.1\r\nHost: {self._authority}\r\n"
            f"Accept: text/event-stream, application/json\r\n{key}"
        ).encode()


class ResponseSink(Protocol):
    """What a response is delivered to."""

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Take the status and the headers, their names in lower case."""

    def body(self, data: bytes, at_s: float) -> bool:
        """Take body bytes that arrived at `at_s`; False asks the connection to hang up."""


class _Exchange:
    """One response under way; the callbacks are named by httptools."""

    def __init__(self, sink: ResponseSink, done: "asyncio.Future[End]") -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.done = done
        self.at_s = 0.0
        self.answered = False
        self.wanted = True
        self.complete = False
        self.keep_alive = False
        self._sink = sink
        self._headers: dict[str, str] = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._sink.head(self.parser.get_status_code(), self._headers)

    def on_body(self, data: bytes) -> None:
        if self.wanted:
            self.wanted = self._sink.body(data, self.at_s)

    def on_message_complete(self) -> None:
        self.complete = True
        # Asked here, because the parser forgets the message once this callback has returned.
        self.keep_alive = bool(self.parser.should_keep_alive())

    def finish(self, end: End) -> None:
        if not self.done.done():
            self.done.set_result(end)


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time.

    Attributes:
        reusable: the last exchange ended cleanly and the server keeps the connection open.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._exchange: _Exchange | None = None
        self.reusable = False

    async def exchange(self, request: bytes, sink: ResponseSink) -> tuple[End, bool]:
        """Send a request; return how the exchange ended and whether any byte came back."""
        if self._transport is None:
            return End.CLOSED, False
        self.reusable = False
        exchange = _Exchange(sink, asyncio.get_running_loop().create_future())
        self._exchange = exchange
        self._transport.write(request)
        try:
            return await exchange.done, exchange.answered
        finally:
            self._exchange = None
            if not self.reusable:
                self.abort()

    def abort(self) -> None:
        """Close at once, dropping what is unsent."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self.reusable = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        at_s = self._clock()
        exchange = self._exchange
        if exchange is None or exchange.done.done():
            self.abort()
            return
        exchange.at_s = at_s
        exchange.answered = True
        try:
            exchange.parser.feed_data(data)
        except httptools.HttpParserError:
            exchange.finish(End.MALFORMED)
            return
        if not exchange.wanted:
            exchange.finish(End.HUNG_UP)
        elif exchange.complete:
            self.reusable = exchange.keep_alive
            exchange.finish(End.COMPLETE)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.reusable = False
        if self._exchange is not None:
            self._exchange.finish(End.CLOSED)


class ConnectionPool:
    """Keep-alive connections to one server; never limits how many there are."""

    def __init__(self, endpoint: Endpoint, clock: Clock) -> None:
        self.endpoint = endpoint
        self._clock = clock
        self._address = endpoint.host
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()

    async def exchange(self, request: bytes, sink: ResponseSink) -> End:
        """Send a request on an idle connection, else on a new one.

        A server may close an idle connection just as it is used again. If no byte of an answer
        came, the request goes out once more on a new connection: a completion that runs twice
        costs time, but changes nothing (RFC 9112 §9.3.1).

        Raises:
            OSError: no connection could be made.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                end, answered = await self._on(connection, request, sink)
                if answered or end is not End.CLOSED:
                    return end
        end, _ = await self._on(await self._connect(), request, sink)
        return end

    def close(self) -> None:
        """Close every connection, idle or busy."""
        for connection in [*self._idle, *self._busy]:
            connection.abort()
        self._idle.clear()

    @property
    def open_connections(self) -> int:
        """Connections that are idle or in use."""
        return len(self._idle) + len(self._busy)

    async def _connect(self) -> Connection:
        tls = self.endpoint.tls
        transport, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self._clock),
            self._address,
            self.endpoint.port,
            ssl=tls,
            server_hostname=self.endpoint.host if tls else None,
        )
        # Names are resolved once: the resolver's thread would be part of every later latency.
        self._address = transport.get_extra_info("peername")[0]
        return connection

    async def _on(
        self, connection: Connection, request: bytes, sink: ResponseSink
    ) -> tuple[End, bool]:
        self._busy.add(connection)
        try:
            return await connection.exchange(request, sink)
        finally:
            self._busy.discard(connection)
            if connection.reusable:
                self._idle.append(connection)
