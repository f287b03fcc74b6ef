"""Frames over a socket: what goes through, and what ends the connection."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import msgpack
import msgspec
import pytest
from tests.support.link_pairs import resources

from twinflow.runtime.model_runner import SequenceRows
from twinflow.workers.ranks.connection import GREETING, Connection, ConnectionBroken
from twinflow.workers.ranks.frames import (
    Beat,
    Failed,
    Frame,
    Hello,
    Order,
    Step,
    Stop,
    StoreCall,
    Welcome,
    step_frame,
)

FRAMES: list[Frame] = [
    Beat(),
    Hello("decode-0", 3, 1, 2, "heads:12ab", 1 << 40),
    Welcome(161),
    StoreCall("set", ["key"], b"\x00\xff"),
    Failed("es ist aus: ü"),
    Order("pages", b""),
    Stop(),
]
ROWS = [
    SequenceRows([1, 2, 131071], 7, [3, 9], samples=True, prompt_tokens=9, held_as="r/0"),
    SequenceRows([5], 0, [], samples=False),
    SequenceRows([8, 9], 4, [2], samples=False, layer_start=1, layer_end=3, sequence="r/1"),
]


@contextmanager
def pair(*, admitted: bool = True, send_s: float = 10.0) -> Iterator[tuple[Connection, Connection]]:
    ours, theirs = (Connection(sock, send_s) for sock in socket.socketpair())
    for end in (ours, theirs):
        if admitted:
            end.admit()
    try:
        yield ours, theirs
    finally:
        ours.close()
        theirs.close()


@contextmanager
def wired(*, admitted: bool = True) -> Iterator[tuple[Connection, socket.socket]]:
    """A connection, and the bare other end of it."""
    ours, theirs = socket.socketpair()
    connection = Connection(ours, 10.0)
    if admitted:
        connection.admit()
    try:
        yield connection, theirs
    finally:
        theirs.close()
        connection.close()


def test_every_frame_arrives_as_it_was_sent() -> None:
    with pair() as (ours, theirs):
        for frame in FRAMES:
            ours.send(frame)
        assert [theirs.receive(5.0) for _ in FRAMES] == FRAMES
        assert theirs.receive(0.0) is None


def test_rows_arrive_as_they_were_sent() -> None:
    with pair() as (ours, theirs):
        ours.send(step_frame(4, ROWS, 2, ["r/7"]))
        step = theirs.receive(5.0)
    assert isinstance(step, Step)
    assert (step.number, step.layers_per_unit, step.forgotten) == (4, 2, ["r/7"])
    arrived = [
        replace(rows, token_ids=list(rows.token_ids), block_ids=list(rows.block_ids))
        for rows in step.sequence_rows()
    ]
    assert arrived == ROWS


def test_a_frame_may_come_byte_by_byte() -> None:
    with wired() as (connection, raw):
        data = b"".join(map(msgspec.msgpack.encode, FRAMES))
        for byte in data[:-1]:
            raw.sendall(bytes([byte]))
        assert [connection.receive(5.0) for _ in FRAMES[:-1]] == FRAMES[:-1]
        assert connection.receive(0.0) is None
        raw.sendall(data[-1:])
        assert connection.receive(5.0) == Stop()


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"GET / HTTP/1.1\r\n",
        msgpack.packb(["unknown kind"]),
        msgpack.packb(["welcome"]),
        msgpack.packb(["welcome", "many"]),
        msgpack.packb(["welcome", 1, 2]),
        msgpack.packb({"welcome": 1}),
        msgpack.packb(["order", b"kind", b"body"]),
        msgpack.packb(["failed", msgpack.ExtType(1, b"x")]),
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000,
    ],
)
def test_what_is_no_frame_ends_the_connection(data: bytes) -> None:
    with wired() as (connection, raw):
        raw.sendall(data)
        with pytest.raises(ConnectionBroken, match="sent what is no frame"):
            connection.receive(5.0)


def test_whoever_has_not_proved_anything_gets_to_say_little() -> None:
    long = msgspec.msgpack.encode(Order("kind", bytes(2 * GREETING.max_bytes)))
    with wired() as (connection, raw):
        raw.sendall(long)
        assert isinstance(connection.receive(5.0), Order)
    for data in (long, msgpack.packb(["failed", ["x"] * 17]), b"\x9f" * 5000):
        with wired(admitted=False) as (connection, raw):
            raw.sendall(data)
            with pytest.raises(ConnectionBroken):
                connection.receive(5.0)


@pytest.mark.parametrize(
    "begin", [b"\xdc\xff\xff", b"\xc6\xff\xff\xff\xff"], ids=["arrays in an array", "bytes"]
)
def test_a_frame_does_not_outgrow_the_limit_piece_by_piece(begin: bytes) -> None:
    with wired() as (connection, raw):
        writer = threading.Thread(target=_flood, args=(raw, begin), daemon=True)
        writer.start()
        with pytest.raises(ConnectionBroken, match="a frame of more than 16777216 bytes"):
            connection.receive(60.0)
        connection.close()
        writer.join(10.0)
        assert not writer.is_alive()


def _flood(raw: socket.socket, begin: bytes) -> None:
    """Send a beginning, and arrays of numbers until nobody takes them any more."""
    try:
        raw.sendall(begin)
        while True:
            raw.sendall(b"\xdc\xff\xff" + b"\x01" * 65535)
    except OSError:
        return


def test_a_frame_that_is_too_long_is_not_sent() -> None:
    with pair() as (ours, _), pytest.raises(ConnectionBroken, match="bytes, which is too long"):
        ours.send(Order("kind", bytes(17 << 20)))


def test_an_end_that_does_not_read_or_has_gone_is_noticed() -> None:
    with pair(send_s=0.2) as (ours, theirs):
        with pytest.raises(ConnectionBroken, match="does not read"):
            ours.send(Order("kind", bytes(8 << 20)))
        theirs.close()
        with pytest.raises(ConnectionBroken, match="has gone"):
            ours.receive(5.0)
        with pytest.raises(ConnectionBroken, match="has gone"):
            ours.send(Beat())


def test_a_beat_does_not_wait_for_a_long_frame() -> None:
    with pair() as (ours, theirs):
        writer = threading.Thread(target=ours.send, args=(Order("kind", bytes(8 << 20)),))
        writer.start()
        while not ours._lock.locked():
            pass
        ours.send_if_idle(Beat())  # returns though nobody reads
        assert isinstance(theirs.receive(10.0), Order)
        writer.join()
        ours.send_if_idle(Beat())
        assert theirs.receive(5.0) == Beat()


def test_closing_wakes_the_reader_and_gives_back_the_socket() -> None:
    before = resources().fds
    with pair() as (ours, _):
        errors: list[str] = []

        def read() -> None:
            try:
                ours.receive(60.0)
            except ConnectionBroken as error:
                errors.append(str(error))

        reader = threading.Thread(target=read)
        reader.start()
        ours.close()
        reader.join(10.0)
        assert len(errors) == 1
    assert resources().fds == before
