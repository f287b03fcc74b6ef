"""Frames over a connected socket, bounded in bytes and in time.

One thread receives, any thread sends. What breaks a connection once breaks it for ever. Nothing
that arrives is ever executed or unpickled: msgpack makes numbers, strings, bytes and arrays of it,
within limits, and msgspec checks them against the frames there are.
"""

import socket
import threading
from collections import deque
from dataclasses import dataclass

import msgpack
import msgspec

from twinflow.parallel.links.deadline import Deadline
from twinflow.workers.ranks.frames import Frame

_CHUNK = 1 << 16


class ConnectionBroken(Exception):
    """A connection is of no use any more; says in half a sentence what the other end did."""


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """What one frame may be.

    Attributes:
        max_bytes: as it travels.
        max_items: longest array.
    """

    max_bytes: int
    max_items: int


# Whoever has not proved anything yet gets to say little.
GREETING = FrameLimits(max_bytes=4096, max_items=16)
# A step of a hundred thousand rows, or of a million blocks.
ADMITTED = FrameLimits(max_bytes=16 << 20, max_items=1 << 16)


class Connection:
    """One end.

    Args:
        sock: connected; belongs to the connection from now on.
        send_s: seconds until the other end must have taken a frame.
    """

    def __init__(self, sock: socket.socket, send_s: float) -> None:
        sock.settimeout(send_s)
        self._sending = sock
        self._receiving = sock.dup()  # with a timeout of its own
        self._lock = threading.Lock()
        self._frames: deque[Frame] = deque()
        self._limits = GREETING
        self._unpacker = _unpacker(GREETING)
        self._unfinished = 0  # bytes since the last frame was complete

    def admit(self) -> None:
        """The other end has proved itself: it may send long frames."""
        self._limits = ADMITTED
        self._unpacker = _unpacker(ADMITTED)

    def send(self, frame: Frame) -> None:
        """Send a frame.

        Raises:
            ConnectionBroken: the other end does not read, or has gone.
        """
        with self._lock:
            self._send(frame)

    def send_if_idle(self, frame: Frame) -> None:
        """Send a frame unless another one is being sent.

        Raises:
            ConnectionBroken: the other end does not read, or has gone.
        """
        if self._lock.acquire(blocking=False):
            try:
                self._send(frame)
            finally:
                self._lock.release()

    def receive(self, timeout_s: float) -> Frame | None:
        """The next frame; None if there is none in time.

        Raises:
            ConnectionBroken: the other end has gone, or sent what is no frame.
        """
        deadline = Deadline.after(timeout_s)
        while not self._frames:
            # What has arrived already is taken in even if no time is left.
            if not self._read(deadline) and deadline.expired:
                return None
        return self._frames.popleft()

    def close(self) -> None:
        """Break the connection; wakes whoever receives. Idempotent."""
        for sock in (self._sending, self._receiving):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:  # it was broken before
                continue
        self._sending.close()
        self._receiving.close()

    def _send(self, frame: Frame) -> None:
        data = msgspec.msgpack.encode(frame)
        if len(data) > ADMITTED.max_bytes:
            raise ConnectionBroken(f"was to get a frame of {len(data)} bytes, which is too long")
        try:
            self._sending.sendall(data)
        except TimeoutError:
            raise ConnectionBroken("does not read what it is sent") from None
        except OSError as error:
            raise ConnectionBroken(f"has gone ({error.strerror or error})") from None

    def _read(self, deadline: Deadline) -> bool:
        """Take in what has arrived; whether anything did before the deadline."""
        try:
            self._receiving.settimeout(max(deadline.remaining(), 0.001))
            data = self._receiving.recv(_CHUNK)
        except TimeoutError:
            return False
        except OSError as error:
            raise ConnectionBroken(f"has gone ({error.strerror or error})") from None
        if not data:
            raise ConnectionBroken("has gone (end of stream)")
        self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        self._unfinished += len(data)
        try:
            self._unpacker.feed(data)
            for item in self._unpacker:
                self._frames.append(msgspec.convert(item, type=Frame))
                self._unfinished = 0
        except (msgpack.UnpackException, msgspec.ValidationError, ValueError) as error:
            raise ConnectionBroken(f"sent what is no frame ({_short(error)})") from None
        if self._unfinished > self._limits.max_bytes:
            raise ConnectionBroken(f"sent a frame of more than {self._limits.max_bytes} bytes")


def _unpacker(limits: FrameLimits) -> "msgpack.Unpacker":
    return msgpack.Unpacker(
        raw=False,
        strict_map_key=True,
        max_buffer_size=limits.max_bytes + 2 * _CHUNK,
        max_str_len=limits.max_bytes,
        max_bin_len=limits.max_bytes,
        max_array_len=limits.max_items,
        max_map_len=0,
        max_ext_len=0,
    )


def _short(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:200]
