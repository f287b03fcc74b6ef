"""Just enough HTTP/2 to misbehave: hand-made frames over a plain socket.

RFC 9113 for the frames; headers are HPACK literals without indexing (RFC 7541 §6.2.2), which need
no table.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0x0, 0x1, 0x3, 0x4, 0x6, 0x7
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
CANCEL = struct.pack(">I", 0x8)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(pairs: Iterable[tuple[int, int]] = ()) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def headers(stream: int, path: str, extra: Iterable[tuple[str, str]] = ()) -> bytes:
    """A HEADERS frame that begins a gRPC call."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *extra,
    ]
    block = b"".join(b"\x00" + _literal(name) + _literal(value) for name, value in fields)
    return frame(HEADERS, END_HEADERS, stream, block)


def message(stream: int, body: bytes, *, end: bool = True) -> bytes:
    """A DATA frame with one gRPC message."""
    payload = struct.pack(">BI", 0, len(body)) + body
    return frame(DATA, END_STREAM if end else 0, stream, payload)


def _literal(text: str) -> bytes:
    data = text.encode()
    assert len(data) < 127
    return bytes((len(data),)) + data


@dataclass
class Http2:
    """A connection that has sent its preface."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))
        await self.writer.drain()

    async def read_frame(self) -> tuple[int, int, bytes]:
        """Kind, stream and payload of the next frame; IncompleteReadError at the end."""
        head = await self.reader.readexactly(9)
        length = int.from_bytes(head[:3], "big")
        payload = await self.reader.readexactly(length)
        return head[3], struct.unpack(">I", head[5:])[0], payload

    async def wait_for(self, kind: int) -> bytes:
        """The payload of the first frame of a kind, others skipped."""
        async with asyncio.timeout(10):
            while True:
                found, _, payload = await self.read_frame()
                if found == kind:
                    return payload

    def reset(self) -> None:
        """Cut the connection with a TCP RST."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@asynccontextmanager
async def connect(port: int, pairs: Iterable[tuple[int, int]] = ()) -> AsyncIterator[Http2]:
    """Connect to a loopback port, with these settings."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = Http2(reader, writer)
    await connection.send(PREFACE, settings(pairs))
    try:
        await connection.wait_for(SETTINGS)  # until it is acknowledged, servers are on their guard
        await connection.send(frame(SETTINGS, ACK, 0))
        yield connection
    finally:
        writer.transport.abort()
