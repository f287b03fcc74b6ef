"""Limits of the HTTP front door."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """The configuration of an `HttpServer`; the defaults suit an open network.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        max_body_bytes: largest request body.
        max_bodies_bytes: what has arrived of all bodies that are being read.
        max_url_bytes: longest request target.
        max_header_bytes: all headers of a request together.
        max_headers: number of headers of a request.
        max_connections: further ones are refused.
        head_timeout_s: from the first byte of a request to the end of its headers.
        body_timeout_s: from the end of the headers to the end of the body.
        keep_alive_s: how long an idle connection stays open; longer than the load balancers before
            it keep theirs (60 s), or they would send requests into closed connections.
        write_timeout_s: how long a reader may not read while more is to be sent.
        write_buffer_bytes: what may wait for a slow reader before generation waits too.
        linger_s: how long a refused client may go on sending, so that it can read the refusal.
        shutdown_s: how long requests in flight may take once the server stops.
        deadline_s: time a request may take.
        readiness_timeout_s: time the backend has to say whether it is ready.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_body_bytes: int = 4 << 20
    max_bodies_bytes: int = 64 << 20
    max_url_bytes: int = 64 << 10
    max_header_bytes: int = 16 << 10
    max_headers: int = 100
    max_connections: int = 4096
    head_timeout_s: float = 10.0
    body_timeout_s: float = 10.0
    keep_alive_s: float = 75.0
    write_timeout_s: float = 30.0
    write_buffer_bytes: int = 64 << 10
    linger_s: float = 2.0
    shutdown_s: float = 60.0
    deadline_s: float = 600.0
    readiness_timeout_s: float = 10.0
