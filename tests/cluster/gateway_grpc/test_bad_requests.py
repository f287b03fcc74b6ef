"""Rows B1 to B6 and B11 of the catalogue: what a caller may get wrong in one call."""

import math
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.json_format import ParseDict
from prometheus_client import CollectorRegistry
from tests.support import http2
from tests.support.fake_backend import Behaviour, FakeBackend
from tests.support.fake_text import TEMPLATE_ERROR
from tests.support.grpc_doors import (
    SERVICE,
    call,
    eventually,
    failing,
    generate_request,
    pipeline_of,
    running_door,
    stream,
    stream_request,
)

from twinflow.cluster.gateway.http.app import create_app
from twinflow.cluster.gateway.http.dependencies import HttpDependencies
from twinflow.protos.errors import (
    ClientError,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    ServerError,
    Unauthenticated,
    WorkerLost,
)
from twinflow.protos.twinflow.v1 import inference_pb2 as pb

MIB = 1024 * 1024
KEY = (("authorization", "Bearer right"),)


async def test_b1_a_message_over_the_limit_is_refused_and_one_at_the_limit_read() -> None:
    async with running_door() as door, door.channel() as channel:
        with failing() as failure:
            await call(channel, "Generate", b"\x00" * (4 * MIB + 1))
        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        with failing() as failure:  # read, and then found to be no message
            await call(channel, "Generate", b"\x00" * (4 * MIB))
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_b1_a_compressed_bomb_is_refused() -> None:
    bomb = generate_request("a" * (64 * MIB)).SerializeToString()
    async with running_door() as door, door.channel() as channel:
        with failing() as failure:
            await call(channel, "Generate", bomb, compression=grpc.Compression.Gzip)
        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        packed = generate_request().SerializeToString()
        assert await call(channel, "Generate", packed, compression=grpc.Compression.Gzip)


INVALID_UTF8 = (
    pb.TokenizeRequest(model="tiny", text="qq").SerializeToString().replace(b"qq", b"\xff\xfe")
)


@pytest.mark.parametrize(
    ("method", "data"),
    [
        ("Generate", b"\xff\xff\xff"),
        ("GenerateStream", b"GET / HTTP/1.1\r\n\r\n"),
        ("Generate", generate_request("x" * 100).SerializeToString()[:-3]),
        ("Tokenize", INVALID_UTF8),
        ("Detokenize", b"\x0a\x05abc"),
        ("/grpc.health.v1.Health/Check", b"\x0a\x02\xff\xff"),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", b"\xff"),
    ],
)
async def test_b2_bytes_that_are_no_message_are_the_callers_error(method: str, data: bytes) -> None:
    async with running_door() as door, door.channel() as channel:
        with failing() as failure:
            await call(channel, method, data)
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(failure.error, InvalidRequest)
    assert failure.message.startswith("The request is not a valid ")


async def test_b3_unknown_fields_are_ignored() -> None:
    unknown = b"\xfa\x7f\x03new"  # field 2047
    async with running_door() as door, door.channel() as channel:
        data = generate_request().SerializeToString() + unknown
        response = pb.GenerateResponse.FromString(await call(channel, "Generate", data))
    assert response.completions[0].text


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (pb.GenerateRequest(), "input"),
        (pb.GenerateRequest(input=pb.GenerationInput(text="Hi")), "model"),
        (pb.GenerateRequest(input=pb.GenerationInput(model="tiny")), "prompt"),
        (pb.GenerateStreamRequest(), "input"),
        (pb.TokenizeRequest(model="tiny"), "prompt"),
    ],
)
async def test_b3_missing_fields_are_named(request_: Any, param: str) -> None:
    method = type(request_).__name__.removesuffix("Request")
    async with running_door() as door, door.channel() as channel:
        with failing() as failure:
            await call(channel, method, request_)
    assert isinstance(failure.error, InvalidRequest)
    assert failure.error.param == param


def chat(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": list(messages), **fields}


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "Hello", **fields}


USER = {"role": "user", "content": "Hi"}
# OpenAI's JSON; `as_message` turns it into the proto form.
BAD_REQUESTS: dict[str, dict[str, Any]] = {
    "A13 unknown model": completion(model="gpt-4"),
    "A13 path as model": completion(model="../../etc/passwd"),
    "A13 10 kB model": completion(model="m" * 10_000),
    "A14 no messages": chat(),
    "A14 too many messages": chat(*[USER] * 1025),
    "A15 unknown role": chat({"role": "wizard", "content": "Hi"}),
    "A15 tool role": chat(USER, {"role": "tool", "content": "4"}),
    "A15 empty name": chat({**USER, "name": ""}),
    "A15 long name": chat({**USER, "name": "x" * 65}),
    "A15 template refuses": chat({"role": "user", "content": TEMPLATE_ERROR}),
    "A16 empty content": chat({"role": "user", "content": ""}),
    "A17 empty prompt": completion(prompt=""),
    "A17 no token": completion(prompt=[]),
    "A18 token beyond the vocabulary": completion(prompt=[1, 258]),
    "A18 token of 32 bits": completion(prompt=[2**32 - 1]),
    "A19 max_tokens 0": completion(max_tokens=0),
    "A19 max_tokens 2^31": completion(max_tokens=2**31),
    "A20 prompt over the context": completion(prompt="x" * 257),
    "A20 prompt and output over the context": completion(prompt="x" * 200, max_tokens=57),
    "A20 conversation over the context": chat({"role": "user", "content": "x" * 300}),
    "A21 prompt fills the context": completion(prompt="x" * 256),
    "A22 more blocks than the pool": completion(prompt="x" * 130, max_tokens=1),
    "A23 min above max": completion(min_tokens=5, max_tokens=4),
    "A24 n 0": completion(n=0),
    "A24 n 129": completion(n=129),
    "A24 n 10^9": completion(n=10**9),
    "A25 temperature -1": completion(temperature=-1.0),
    "A25 temperature 2.01": completion(temperature=2.01),
    "A25 top_p 0": completion(top_p=0.0),
    "A25 top_p 1.1": completion(top_p=1.1),
    "A25 top_k -2": completion(top_k=-2),
    "A25 min_p 2": completion(min_p=2.0),
    "A25 presence_penalty 3": completion(presence_penalty=3.0),
    "A25 frequency_penalty -3": completion(frequency_penalty=-3.0),
    "A25 repetition_penalty 0": completion(repetition_penalty=0.0),
    "A26 empty stop": completion(stop=[""]),
    "A26 17 stops": completion(stop=["x"] * 17),
    "A26 100 kB stop": completion(stop=["x" * 100_000]),
    "A27 logprobs 21": completion(logprobs=21),
    "A27 logprobs 10^6": completion(logprobs=10**6),
    "A28 bias beyond the vocabulary": completion(logit_bias={"258": 1.0}),
    "A28 bias of 1e9": completion(logit_bias={"1": 1e9}),
    "A28 too many biases": completion(logit_bias={str(t): 1.0 for t in range(1025)}),
    "A26 stop token beyond the vocabulary": completion(stop_token_ids=[258]),
    "A26 too many stop tokens": completion(stop_token_ids=[1] * 129),
    "A35 cache_salt too long": completion(cache_salt="s" * 257),
}


def as_message(document: dict[str, Any]) -> pb.GenerateRequest:
    """The proto form of a JSON request."""
    groups = (("sampling", pb.SamplingParams), ("stopping", pb.StopCriteria))
    found: dict[str, Any] = {name: {} for name, _ in groups} | {"response": {}}
    for name, value in document.items():
        group = next((g for g, kind in groups if name in kind.DESCRIPTOR.fields_by_name), None)
        if group is not None:
            found[group][name] = value
        elif name == "messages":
            found["chat"] = {"messages": value}
        elif name == "prompt" and isinstance(value, list):
            found["token_ids"] = {"ids": value}
        elif name == "prompt":
            found["text"] = value
        elif name == "logprobs":
            found["response"][name] = value
        else:
            found[name] = value
    return ParseDict({"input": found}, pb.GenerateRequest())


async def http_verdict(backend: FakeBackend, document: dict[str, Any]) -> dict[str, Any]:
    """The status, code and param with which the HTTP door refuses a request."""
    route = "/v1/chat/completions" if "messages" in document else "/v1/completions"
    dependencies = HttpDependencies(
        pipeline=pipeline_of(backend), backend=backend, registry=CollectorRegistry()
    )
    transport = httpx.ASGITransport(create_app(dependencies))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.post(route, json=document)
    return {"status": response.status_code, **response.json()["error"]}


@pytest.mark.parametrize("row", BAD_REQUESTS)
async def test_b4_both_doors_give_the_same_verdict(row: str) -> None:
    document = BAD_REQUESTS[row]
    backend = FakeBackend()
    backend.max_prompt_tokens = 128
    expected = await http_verdict(backend, document)
    async with running_door(backend) as door, door.channel() as channel:
        message = as_message(document)
        with failing() as unary:
            await call(channel, "Generate", message)
        with failing() as streamed:
            await stream(channel, pb.GenerateStreamRequest(input=message.input)).read()
    for failure in (unary, streamed):
        error = failure.error
        assert isinstance(error, ClientError)
        assert failure.code is grpc.StatusCode[error.grpc_status]
        verdict = {"status": error.http_status, "code": error.code, "param": error.param}
        assert verdict == {name: expected[name] for name in verdict}
        assert len(error.message) < 512
        assert "x" * 100 not in error.message
    assert not backend.specs


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "field", ["temperature", "top_p", "min_p", "presence_penalty", "repetition_penalty"]
)
async def test_b4_numbers_that_json_cannot_have_are_refused(field: str, value: float) -> None:
    message = generate_request()
    setattr(message.input.sampling, field, value)
    async with running_door() as door, door.channel() as channel:
        with failing() as failure:
            await call(channel, "Generate", message)
        message = generate_request()
        message.input.sampling.logit_bias[1] = value
        with failing() as bias:
            await call(channel, "Generate", message)
    assert isinstance(failure.error, InvalidRequest) and failure.error.param == field
    assert isinstance(bias.error, InvalidRequest) and bias.error.param == "logit_bias"


async def test_b4_what_http_serves_is_served_here_too() -> None:
    good = [
        completion(prompt="x" * 255, max_tokens=1),
        completion(prompt="\x00\u202e\u200b\N{GRINNING FACE}e\u0301"),
        completion(temperature=1e-30, seed=2**64 - 1, top_k=-1),
        completion(stop=["(a+)+b", "[DONE]", "\n\n"]),
        chat({"role": "system", "content": ""}, USER, {"role": "assistant", "content": ""}),
    ]
    async with running_door() as door, door.channel() as channel:
        for document in good:
            assert await call(channel, "Generate", as_message(document))


async def test_b5_unknown_methods_are_unimplemented() -> None:
    async with running_door() as door, door.channel() as channel:
        for path in (f"{SERVICE}/Embed", "/twinflow.v2.Inference/Generate", "/", "/../metrics"):
            with failing() as failure:
                await call(channel, path, b"")
            assert failure.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer wrong"),),
        (("authorization", ""),),
        (("authorization", "right"),),
        (("authorization", "bearer right"),),
        (("authorization", "Basic right"),),
        (("x-api-key", "right"),),
        (("authorization", "Bearer right"), ("authorization", "Bearer right")),
        (("authorization", "Bearer " + "k" * 5000),),
    ],
)
async def test_b6_every_method_needs_the_key(metadata: tuple[tuple[str, str], ...]) -> None:
    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    methods = ("Generate", "GenerateStream", "Tokenize", "Detokenize", "GetModelInfo")
    async with running_door(keys=("other", "right")) as door, door.channel() as channel:
        for method in (*methods, reflection, f"{SERVICE}/Unknown", "/x.Y/Z"):
            with failing() as failure:
                await call(channel, method, b"\xff", metadata=metadata)
            assert failure.code is grpc.StatusCode.UNAUTHENTICATED, method
            assert isinstance(failure.error, Unauthenticated)
            assert "right" not in failure.message
        assert await call(channel, "/grpc.health.v1.Health/Check", b"", metadata=metadata)


async def test_b6_each_of_several_keys_is_accepted_and_its_holder_named() -> None:
    backend = FakeBackend()
    async with running_door(backend, keys=("other", "right")) as door, door.channel() as channel:
        for key in ("other", "right"):
            metadata = (("authorization", f"Bearer {key}"),)
            assert await call(channel, "Generate", generate_request(), metadata=metadata)
    first, second = (spec.api_key_id for spec in backend.specs)
    assert first and second and first != second
    assert "right" not in second


async def test_b6_a_key_under_an_upper_case_name_is_no_key() -> None:
    """HTTP/2 forbids such names; whatever becomes of the stream, the call is not served."""
    backend = FakeBackend()
    async with running_door(backend, keys=("right",)) as door:
        async with http2.connect(door.port) as wire:
            extra = [("Authorization", "Bearer right")]
            await wire.send(
                http2.headers(1, f"{SERVICE}/Generate", extra),
                http2.message(1, generate_request().SerializeToString()),
            )
            seen: set[int] = set()
            while not seen & {http2.HEADERS, http2.RST_STREAM, http2.GOAWAY}:
                seen.add((await wire.read_frame())[0])
        async with door.channel() as channel:
            assert await call(channel, "Generate", generate_request(), metadata=KEY)
    assert len(backend.specs) == 1


async def test_b6_metadata_over_the_limit_is_refused() -> None:
    async with running_door() as door, door.channel() as channel:
        with failing() as failure:
            await call(channel, "GetModelInfo", b"", metadata=(("x-big", "v" * 64 * 1024),))
        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call(channel, "GetModelInfo", b"", metadata=(("x-big", "v" * 12_000),))


async def no_message() -> AsyncIterator[bytes]:
    return
    yield b""


async def two_messages() -> AsyncIterator[bytes]:
    yield generate_request().SerializeToString()
    yield generate_request().SerializeToString()


@pytest.mark.parametrize("messages", [no_message, two_messages])
@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_b11_methods_take_exactly_one_message(messages: Any, method: str) -> None:
    backend = FakeBackend()
    async with running_door(backend) as door, door.channel() as channel:
        with failing() as failure:
            await channel.stream_unary(f"{SERVICE}/{method}")(messages(), timeout=20)
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.message == "The method takes exactly one request message."
    assert not backend.specs


async def test_b11_a_request_that_never_completes_is_given_up() -> None:
    async with running_door(receive_timeout_s=0.2) as door, http2.connect(door.port) as wire:
        data = generate_request().SerializeToString()
        await wire.send(http2.headers(1, f"{SERVICE}/Generate"))
        await wire.send(http2.headers(3, f"{SERVICE}/Generate"), http2.message(3, data, end=False))
        await eventually(lambda: door.door.calls == 2)
        await eventually(lambda: door.door.calls == 0)


@pytest.mark.parametrize(
    "error",
    [
        LookupError("/secret/path"),
        EngineError("secret tensor"),
        WorkerLost("secret-host:7777 is gone"),
        DeadlineExceeded("secret-host did not answer"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_errors_inside_stay_inside(error: Exception) -> None:
    """Callers learn the kind and the request's id, and the next call is served."""

    def explode(_spec: object) -> bytes:
        raise error

    known = isinstance(error, ServerError)
    backend = FakeBackend(Behaviour(reply=explode))
    async with running_door(backend) as door, door.channel() as channel:
        with failing() as unary:
            await call(channel, "Generate", generate_request())
        with failing() as streamed:
            await stream(channel, stream_request()).read()
        for failure in (unary, streamed):
            assert type(failure.error) is (type(error) if known else ServerError)
            assert "secret" not in failure.message and "LookupError" not in failure.message
        first, second = (spec.request_id.rpartition("-")[0] for spec in backend.specs)
        assert first in unary.message and second in streamed.message
        backend.behaviour = Behaviour()
        assert await call(channel, "Generate", generate_request())
