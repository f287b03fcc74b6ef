"""Rows B8 to B10, B12, B13, B18 and B19: calls that end early, late, all at once or not at all."""

import asyncio
import struct
import threading
import time
from typing import Any

import grpc
import psutil
import pytest
from tests.support import http2
from tests.support.fake_backend import Behaviour, FakeBackend, fake_model, hashed_reply
from tests.support.grpc_doors import (
    SERVICE,
    RunningDoor,
    call,
    eventually,
    failing,
    generate_request,
    rest_of,
    running_door,
    stream,
    stream_request,
)

from twinflow.protos.errors import DeadlineExceeded, Overloaded, Unavailable
from twinflow.protos.twinflow.v1 import inference_pb2 as pb

# Phases a sequence can be in when its caller goes: before its first token, and between tokens.
PHASES: dict[str, Behaviour] = {
    "before the first token": Behaviour(first_delay_s=60),
    "between tokens": Behaviour(delay_s=60),
}


def endless(**behaviour: Any) -> FakeBackend:
    """A backend whose sequences go on for a million tokens."""
    return FakeBackend(
        Behaviour(reply=lambda _spec: b"x" * 1_000_000, **behaviour), fake_model(2_000_000)
    )


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_b8_a_deadline_drops_the_work(method: str, phase: str) -> None:
    backend = FakeBackend(PHASES[phase])
    async with running_door(backend) as door, door.channel() as channel:
        with failing() as failure:
            await call(channel, method, generate_request(), timeout=0.3)
        assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: not backend.live, within_s=1.0)
    assert backend.outcomes["aborted"] == 1
    assert 0 < backend.specs[0].deadline_s <= 0.31  # the wire rounds it up


@pytest.mark.parametrize("timeout", [0.0, 0.001])
async def test_b8_a_deadline_that_is_over_costs_nothing(timeout: float) -> None:
    backend = FakeBackend(Behaviour(first_delay_s=60))
    async with running_door(backend) as door, door.channel() as channel:
        with failing() as failure:
            await call(channel, "Generate", generate_request(), timeout=timeout)
        assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
        backend.behaviour = Behaviour()
        assert await call(channel, "Generate", generate_request())
    assert not backend.live


async def test_b8_calls_without_a_deadline_get_the_servers() -> None:
    backend = FakeBackend()
    async with running_door(backend, max_deadline_s=7.0) as door, door.channel() as channel:
        await call(channel, "Generate", generate_request(), timeout=None)
        await call(channel, "Generate", generate_request(), timeout=3600)
        await call(channel, "Generate", generate_request(), timeout=5)
    assert [round(spec.deadline_s) for spec in backend.specs] == [7, 7, 5]


async def test_b8_the_servers_own_deadline_is_reported_with_details() -> None:
    error = DeadlineExceeded("decode-0 sent no token within 1 s.")
    backend = FakeBackend(Behaviour(fail_after=3, error=error))
    async with running_door(backend) as door, door.channel() as channel:
        call_ = stream(channel, stream_request())
        with failing() as failure:
            async for _ in call_:
                pass
    assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert isinstance(failure.error, DeadlineExceeded)
    assert "not finished in time" in failure.message


@pytest.mark.parametrize("phase", PHASES)
async def test_b9_cancelling_frees_everything(phase: str) -> None:
    backend = FakeBackend(PHASES[phase])
    async with running_door(backend) as door, door.channel() as channel:
        request = stream_request()
        request.input.sampling.n = 3
        streamed = stream(channel, request)
        unary = asyncio.create_task(call(channel, "Generate", generate_request()))
        await eventually(lambda: len(backend.live) == 4)
        streamed.cancel()
        unary.cancel()
        await eventually(lambda: not backend.live and not door.door.calls, within_s=1.0)
        assert backend.outcomes == {"aborted": 4}


async def test_b9_a_dead_connection_frees_everything() -> None:
    backend = FakeBackend(Behaviour(delay_s=60))
    async with running_door(backend) as door:
        data = stream_request().SerializeToString()
        async with http2.connect(door.port) as wire:
            for number in (1, 3, 5):
                path = f"{SERVICE}/GenerateStream"
                await wire.send(http2.headers(number, path), http2.message(number, data))
            await eventually(lambda: len(backend.live) == 3)
            wire.reset()
            await eventually(lambda: not backend.live and not door.door.calls, within_s=1.0)
        async with door.channel() as channel:
            backend.behaviour = Behaviour()
            assert await call(channel, "Generate", generate_request())


async def test_b10_a_reader_that_stops_is_cut_off_and_told_when_it_comes_back() -> None:
    backend = endless(tokens_per_delta=10_000)
    async with running_door(backend, write_timeout_s=0.3) as door, door.channel() as channel:
        slow = stream(channel, stream_request())
        received = len((await slow.read()).chunk.text)
        await eventually(lambda: not backend.live)
        assert backend.outcomes["aborted"] == 1
        with failing() as failure:
            while (response := await slow.read()) is not grpc.aio.EOF:
                received += len(response.chunk.text)
        assert failure.code is grpc.StatusCode.CANCELLED
        assert "did not read" in failure.message
        # What was under way is bounded by flow control, not by the length of the answer.
        assert received < 900_000
        await eventually(lambda: not door.door.calls)


async def test_b10_readers_that_never_read_hold_nothing_but_their_connection() -> None:
    backend = endless(tokens_per_delta=10_000)
    async with running_door(backend, write_timeout_s=0.2) as door:
        data = stream_request().SerializeToString()
        no_window = [(0x4, 0)]
        async with http2.connect(door.port, no_window) as wire, door.channel() as channel:
            for number in range(1, 41, 2):
                path = f"{SERVICE}/GenerateStream"
                await wire.send(http2.headers(number, path), http2.message(number, data))
            await eventually(lambda: backend.outcomes["aborted"] == 20)
            assert not backend.live
            backend.behaviour = Behaviour()
            assert await call(channel, "Generate", generate_request())


async def text_of(channel: grpc.aio.Channel, prompt: str) -> str:
    """The streamed answer to a prompt, or "refused" if gRPC turned the call away."""
    request = stream_request(prompt)
    request.input.sampling.seed = 1
    try:
        responses = [r async for r in stream(channel, request, timeout=60)]
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE, error
        return "refused"
    return "".join(response.chunk.text for response in responses)


@pytest.mark.slow
async def test_b12_a_thousand_streams_on_one_channel() -> None:
    """Nothing is lost or mixed up, and no thread is needed for it."""
    backend = FakeBackend(Behaviour(tokens_per_delta=16, first_delay_s=0.01))
    threads = threading.active_count()
    async with running_door(backend) as door, door.channel() as channel:
        answers = await asyncio.gather(*(text_of(channel, f"prompt {i}") for i in range(1000)))
        assert threading.active_count() - threads < 8
    texts = {spec.prompt_token_ids: hashed_reply(spec).decode() for spec in backend.specs}
    assert answers == [texts[*f"prompt {i}".encode()] for i in range(1000)]


async def test_b12_beyond_the_limit_of_a_connection_nothing_is_served_twice_or_half() -> None:
    most = 0

    def reply(_spec: object) -> bytes:
        nonlocal most
        most = max(most, len(backend.live))
        return b"four"

    backend = FakeBackend(Behaviour(reply=reply, first_delay_s=0.01))
    async with running_door(backend, max_concurrent_streams=20) as door, door.channel() as channel:
        answers = await asyncio.gather(*(text_of(channel, "Hello") for _ in range(100)))
        assert await text_of(channel, "Hello") == "four"
    assert set(answers) <= {"four", "refused"}
    assert len(backend.specs) == answers.count("four") + 1
    assert 1 < most <= 20


async def test_b12_calls_beyond_the_servers_limit_are_told_when_to_come_back() -> None:
    backend = FakeBackend(Behaviour(delay_s=60))
    async with running_door(backend, max_calls=5) as door, door.channel() as channel:
        streams = [stream(channel, stream_request()) for _ in range(5)]
        for begun in streams:
            await begun.read()
        with failing() as failure:
            await call(channel, "GetModelInfo", b"")
        assert isinstance(failure.error, Overloaded) and failure.error.retry_after_s > 0
        assert await call(channel, "/grpc.health.v1.Health/Check", b"")
        for begun in streams:
            begun.cancel()
        await eventually(lambda: not door.door.calls)
        assert await call(channel, "GetModelInfo", b"")


@pytest.mark.slow
async def test_b13_a_thousand_cancelled_calls_leave_nothing() -> None:
    backend = FakeBackend(Behaviour(first_delay_s=0.001, delay_s=1.0))
    files = psutil.Process().num_fds()
    tasks = len(asyncio.all_tasks())
    async with running_door(backend) as door, door.channel() as channel:
        begun = [stream(channel, stream_request()) for _ in range(1000)]
        await asyncio.gather(*(one.read() for one in begun[::2]))  # half of them are decoding
        for one in begun:
            one.cancel()
        await eventually(lambda: not backend.live and not door.door.calls)
        backend.behaviour = Behaviour()
        started = time.monotonic()
        assert await call(channel, "Generate", generate_request())
        assert time.monotonic() - started < 5
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
    await eventually(lambda: psutil.Process().num_fds() <= files)


@pytest.mark.slow
async def test_b13_rapid_reset_leaves_nothing() -> None:
    backend = FakeBackend(Behaviour(first_delay_s=60))
    async with running_door(backend) as door:
        data = stream_request().SerializeToString()
        async with http2.connect(door.port) as wire:
            for number in range(1, 4001, 2):
                await wire.send(
                    http2.headers(number, f"{SERVICE}/GenerateStream"),
                    http2.message(number, data),
                    http2.frame(http2.RST_STREAM, 0, number, http2.CANCEL),
                )
                if wire.reader.at_eof():
                    break
            await eventually(lambda: not backend.live and not door.door.calls)
        async with door.channel() as channel:
            backend.behaviour = Behaviour()
            assert await call(channel, "Generate", generate_request())


async def test_b13_a_ping_flood_is_sent_away() -> None:
    async with running_door() as door, http2.connect(door.port) as wire:
        await wire.send(*(http2.frame(http2.PING, 0, 0, b"8 bytes!") for _ in range(10)))
        payload = await wire.wait_for(http2.GOAWAY)
        assert struct.unpack(">I", payload[4:8])[0] == 0xB  # ENHANCE_YOUR_CALM
        assert payload[8:] == b"too_many_pings"


@pytest.mark.parametrize(
    "hello",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes.fromhex("16030100a5010000a10303") + b"\x42" * 160,  # a TLS ClientHello
        b"\x00\xff" * 500,
        http2.PREFACE + http2.frame(0x2A, 0xFF, 7, b"?" * 20_000),
        http2.PREFACE + http2.settings() + http2.frame(http2.HEADERS, 4, 1, b"\xff" * 50),
        b"",
    ],
    ids=["http/1.1", "tls", "noise", "bad frame", "bad headers", "nothing"],
)
async def test_b14_other_protocols_are_hung_up_on(hello: bytes) -> None:
    async with running_door(receive_timeout_s=0.5) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        try:
            writer.write(hello)
            async with asyncio.timeout(10):
                while await reader.read(65536):
                    pass
        except ConnectionResetError:
            pass  # hung up on all the same
        finally:
            writer.transport.abort()
        async with door.channel() as channel:
            assert await call(channel, "Generate", generate_request())


async def test_b18_a_full_queue_says_when_to_come_back() -> None:
    backend = FakeBackend()
    backend.max_sequences = 2
    async with running_door(backend) as door, door.channel() as channel:
        request = generate_request()
        request.input.sampling.n = 3
        for method in ("Generate", "GenerateStream"):
            with failing() as failure:
                await call(channel, method, request)
            assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert isinstance(failure.error, Overloaded)
            assert failure.error.retry_after_s == 2.0
    assert not backend.specs


async def test_b18_without_workers_it_is_unavailable() -> None:
    backend = FakeBackend()
    backend.refusal = Unavailable("No decode worker is left.", retry_after_s=3.0)
    async with running_door(backend) as door, door.channel() as channel:
        with failing() as failure:
            await call(channel, "Generate", generate_request())
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert isinstance(failure.error, Unavailable)
    assert failure.error.retry_after_s == 3.0


async def test_b19_draining_refuses_new_calls_and_finishes_old_ones() -> None:
    backend = FakeBackend(Behaviour(reply=lambda _spec: b"abcdef", delay_s=0.05))
    async with running_door(backend) as door, door.channel() as channel:
        old = stream(channel, stream_request())
        text = (await old.read()).chunk.text
        door.door.drain()
        with failing() as failure:
            await call(channel, "Generate", generate_request())
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert isinstance(failure.error, Unavailable) and failure.error.retry_after_s > 0
        assert await health(channel) == "NOT_SERVING"
        text += "".join(response.chunk.text for response in await rest_of(old))
        assert text == "abcdef"
    assert backend.outcomes == {"finished": 1}


async def health(channel: grpc.aio.Channel) -> str:
    raw = await call(channel, "/grpc.health.v1.Health/Check", b"")
    return {b"\x08\x01": "SERVING", b"\x08\x02": "NOT_SERVING"}[raw]


async def stop_while_streaming(
    door: RunningDoor, grace_s: float
) -> tuple[bytes, list[pb.GenerateStreamResponse]]:
    """Stop a door that has a call in progress: the GOAWAY's payload, and the rest of the call."""
    async with door.channel() as channel:
        begun = stream(channel, stream_request())
        await begun.read()
        async with http2.connect(door.port) as wire:
            stopping = asyncio.create_task(door.door.stop(grace_s))
            goaway = await wire.wait_for(http2.GOAWAY)
        try:
            return goaway, await rest_of(begun)
        finally:
            await stopping


async def test_b19_stopping_says_goaway_and_waits_for_the_grace() -> None:
    backend = FakeBackend(Behaviour(reply=lambda _spec: b"abcdef", delay_s=0.05))
    async with running_door(backend) as door:
        goaway, rest = await stop_while_streaming(door, grace_s=30)
    assert struct.unpack(">I", goaway[4:8])[0] == 0  # NO_ERROR
    assert rest[-1].WhichOneof("response") == "complete"
    assert backend.outcomes == {"finished": 1}


async def test_b19_what_outlasts_the_grace_is_cut_off_and_freed() -> None:
    backend = FakeBackend(Behaviour(delay_s=60))
    async with running_door(backend) as door:
        with failing() as failure:
            await stop_while_streaming(door, grace_s=0.2)
        assert failure.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        await eventually(lambda: not backend.live)
    assert backend.outcomes == {"aborted": 1}


async def test_a_port_that_is_taken_is_named() -> None:
    async with running_door() as door:
        with pytest.raises(Exception, match=f"cannot listen on 127.0.0.1:{door.port}"):
            async with running_door(port=door.port):
                pass


def test_pb_has_no_streaming_requests() -> None:
    """What `Endpoint` assumes of the service."""
    methods = pb.DESCRIPTOR.services_by_name["Inference"].methods
    assert not any(method.client_streaming for method in methods)
