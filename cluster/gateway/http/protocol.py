"""uvicorn's HTTP/1.1 protocol with limits.

    head (url, headers) ─────► body ─────► response ─────► keep-alive
    head_timeout_s             body_timeout_s   write_timeout_s    keep_alive_s

llhttp, the parser below, refuses what is ambiguous (two lengths, a length and chunks, folded
headers, bare line feeds). Here is what it leaves open: how much, how long, which Host, which
transfer coding, and clients that ask for another protocol. Refusals have OpenAI's error shape.
"""

import asyncio
import re
from asyncio.events import TimerHandle
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from twinflow.cluster.gateway.http.config import HttpConfig
from twinflow.cluster.gateway.http.errors import plain_error_body

_HOST = re.compile(rb"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
# Hop-by-hop headers of a protocol upgrade.
_UPGRADE = frozenset({b"upgrade", b"http2-settings", b"connection"})
# A loop that was held up runs timers before it reads (libuv does): what a client has sent in time
# is read within this, and only then is it too late.
_READ_FIRST_S = 0.05


class _Refusal(Exception):
    """Raised inside the parser's callbacks; carries the response."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        limits: what a client may do.
        config, server_state, app_state, _loop: uvicorn's.
    """

    def __init__(
        self,
        limits: HttpConfig,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._reading: TimerHandle | None = None
        self._writing: TimerHandle | None = None
        self._in_head = True
        self._head_bytes = 0
        self._header_bytes = 0
        self._refused = False
        self._upgrading = False

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=self._limits.write_buffer_bytes)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(_Refusal(HTTPStatus.TOO_MANY_REQUESTS, "Too many connections."))
        else:
            self._read_within(self._limits.head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._read_within(None)
        self._write_within(None)
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, unless a request waits in its socket."""
        self.timeout_keep_alive_task = self.loop.call_later(_READ_FIRST_S, self._close_idle)

    def _close_idle(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # without waiting for a reader that does not read
        else:
            super().timeout_keep_alive_handler()

    # Writing

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_within(self._limits.write_timeout_s)

    def resume_writing(self) -> None:
        self._write_within(None)
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # after everything is written; not for ever
            self._write_within(self._limits.write_timeout_s)

    # Reading

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while data and not self._refused and not self.transport.is_closing():
            size = self._head_room() if self._in_head else len(data)
            if size <= 0:
                self._refuse(_header_fields_too_large())
                return
            piece, data = data[:size], data[size:]
            if self._in_head:
                self._head_bytes += len(piece)
                if self._reading is None:
                    self._read_within(self._limits.head_timeout_s)
            data = self._feed(piece) + data

    def _head_room(self) -> int:
        return self._limits.max_url_bytes + self._limits.max_header_bytes - self._head_bytes

    def _feed(self, piece: bytes) -> bytes:
        """Parse; returns what is to be parsed again, after a request for an upgrade."""
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            return self._without_upgrade() + piece[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, _Refusal) else _malformed())
        return b""

    def _without_upgrade(self) -> bytes:
        """Stay with HTTP/1.1, as a server may: the same head again, without the question.

        llhttp takes what follows such a head for the other protocol, a request's body included.
        """
        version = self.parser.get_http_version().encode()
        first = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)
        lines = [b"%s: %s" % header for header in self.headers if header[0] not in _UPGRADE]
        if not self.parser.should_keep_alive():
            lines.append(b"connection: close")
        self.parser = httptools.HttpRequestParser(self)
        self._upgrading, self._in_head, self._head_bytes = False, True, 0
        return b"\r\n".join([first, *lines, b"", b""])

    # Parser callbacks

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._header_bytes = True, 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._limits.max_url_bytes:
            raise _Refusal(HTTPStatus.REQUEST_URI_TOO_LONG, "The URL is too long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value.strip(b" \t"))  # white space round it is not part of it
        self._header_bytes += len(name) + len(value)
        too_many = len(self.headers) > self._limits.max_headers
        if too_many or self._header_bytes > self._limits.max_header_bytes:
            raise _header_fields_too_large()

    def on_headers_complete(self) -> None:
        self._check_head()
        if self.parser.should_upgrade():
            self._upgrading = True
            return
        super().on_headers_complete()
        self._in_head, self._head_bytes = False, 0
        self._read_within(self._limits.body_timeout_s)

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        self._in_head = True
        self._read_within(None)
        super().on_message_complete()

    def _check_head(self) -> None:
        version = self.parser.get_http_version()
        hosts = [value for name, value in self.headers if name == b"host"]
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if version not in ("1.0", "1.1"):
            raise _Refusal(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "Only HTTP/1.1 is supported.")
        if self.parser.get_method() == b"CONNECT":
            raise _Refusal(HTTPStatus.BAD_REQUEST, "CONNECT is not supported.")
        if len(hosts) > 1 or (version == "1.1" and not hosts):
            raise _Refusal(HTTPStatus.BAD_REQUEST, "Exactly one Host header is required.")
        if hosts and not _HOST.fullmatch(hosts[0]):
            raise _Refusal(HTTPStatus.BAD_REQUEST, "The Host header is not valid.")
        if codings and [coding.lower() for coding in codings] != [b"chunked"]:
            raise _Refusal(HTTPStatus.BAD_REQUEST, "Only chunked transfer coding is supported.")

    # Timers

    def _read_within(self, seconds: float | None) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._reading = None
        if seconds is not None:
            self._reading = self.loop.call_later(seconds, self._read_once_more)

    def _read_once_more(self) -> None:
        self._reading = self.loop.call_later(_READ_FIRST_S, self._read_timed_out)

    def _read_timed_out(self) -> None:
        self._reading = None
        if self.pipeline or (self._in_head and self._busy()):
            # A pipelined request is not read further before those ahead of it are answered.
            self._read_within(self._limits.body_timeout_s)
            return
        if self._in_head and not self._head_bytes:
            self.transport.close()  # nothing was asked
            return
        self._refuse(_Refusal(HTTPStatus.REQUEST_TIMEOUT, "The request was not sent in time."))

    def _write_within(self, seconds: float | None) -> None:
        if self._writing is not None:
            self._writing.cancel()
        self._writing = None
        if seconds is not None:
            self._writing = self.loop.call_later(seconds, self.transport.abort)

    # Refusing

    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, refusal: _Refusal) -> None:
        """Answer and close. The client may go on sending for a while, and is not listened to.

        A connection closed with unread input is reset, and the answer would be lost with it.
        """
        self._refused = True
        self._read_within(None)
        answering = bool(self.pipeline) or (self._busy() and self.cycle.response_started)
        answered = not self._in_head and not self._busy()
        if answering or answered:  # a second answer would be taken for another request's
            self.transport.abort()
            return
        self.transport.write(_response(refusal))
        self.transport.write_eof()
        self._write_within(self._limits.linger_s)


def _malformed() -> _Refusal:
    return _Refusal(HTTPStatus.BAD_REQUEST, "The request is not valid HTTP/1.1.")


def _header_fields_too_large() -> _Refusal:
    return _Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The headers are too large.")


def _response(refusal: _Refusal) -> bytes:
    code = refusal.status.phrase.lower().replace(" ", "_").replace("-", "_")
    body = plain_error_body(refusal.message, code)
    head = [
        f"HTTP/1.1 {refusal.status.value} {refusal.status.phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    if refusal.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT):
        head.append("retry-after: 1")
    return "\r\n".join([*head, "", ""]).encode() + body
