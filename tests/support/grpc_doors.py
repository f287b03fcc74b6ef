"""A real gRPC door on a loopback port, before a fake backend."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry
from tests.support.fake_backend import FakeBackend
from tests.support.fake_text import ByteCodec

from twinflow.cluster import rpc_status
from twinflow.cluster.gateway.auth import Authenticator
from twinflow.cluster.gateway.grpc_door import GrpcConfig, GrpcDoor, create_grpc_server
from twinflow.cluster.gateway.metrics import GatewayMetrics
from twinflow.cluster.gateway.text_pipeline import TextPipeline
from twinflow.protos.errors import TwinflowError
from twinflow.protos.twinflow.v1 import inference_pb2 as pb

SERVICE = "/twinflow.v1.Inference"


@dataclass(frozen=True)
class RunningDoor:
    """A door that listens, and what is behind it."""

    door: GrpcDoor
    backend: FakeBackend
    pipeline: TextPipeline
    port: int

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def channel(self) -> grpc.aio.Channel:
        options = [
            # Without its own pool it would share the connections of other channels to the port.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_metadata_size", 1 << 20),
            # Loopback is fast enough for windows to grow to megabytes: keep them as they are.
            ("grpc.http2.bdp_probe", 0),
        ]
        return grpc.aio.insecure_channel(self.target, options)


def pipeline_of(backend: FakeBackend) -> TextPipeline:
    """The pipeline that both front doors would share."""
    metrics = GatewayMetrics(CollectorRegistry(), backend.model.name)
    return TextPipeline(backend, ByteCodec(), metrics)


@asynccontextmanager
async def running_door(
    backend: FakeBackend | None = None, *, keys: tuple[str, ...] = (), **settings: Any
) -> AsyncIterator[RunningDoor]:
    """Serve until the block ends; then nothing may be left of any call."""
    backend = backend or FakeBackend()
    pipeline = pipeline_of(backend)
    config = GrpcConfig(**{"port": 0, "readiness_interval_s": 0.05, **settings})
    door = create_grpc_server(pipeline, backend, Authenticator(keys), config)
    port = await door.start()
    try:
        yield RunningDoor(door, backend, pipeline, port)
    finally:
        await door.stop(grace_s=1.0)
    door.check_integrity()
    backend.check_integrity()


async def call(
    channel: grpc.aio.Channel, method: str, request: Message | bytes, **options: Any
) -> bytes:
    """Make a unary call by path, with bytes that need not be a message; the answer's bytes."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    path = method if method.startswith("/") else f"{SERVICE}/{method}"
    unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    return await unary(data, **{"timeout": 20.0, **options})


def stream(channel: grpc.aio.Channel, request: pb.GenerateStreamRequest, **options: Any) -> Any:
    """Begin a stream."""
    path = f"{SERVICE}/GenerateStream"
    method = channel.unary_stream(
        path, type(request).SerializeToString, pb.GenerateStreamResponse.FromString
    )
    return method(request, **{"timeout": 20.0, **options})


async def rest_of(begun: Any) -> list[pb.GenerateStreamResponse]:
    """What is left of a stream that was read from with `read`."""
    responses = []
    while (response := await begun.read()) is not grpc.aio.EOF:
        responses.append(response)
    return responses


def generate_request(text: str = "Hello", max_tokens: int | None = None) -> pb.GenerateRequest:
    """A request that the fake model answers."""
    return pb.GenerateRequest(
        input=pb.GenerationInput(
            model="tiny", text=text, stopping=pb.StopCriteria(max_tokens=max_tokens)
        )
    )


def stream_request(text: str = "Hello", max_tokens: int | None = None) -> pb.GenerateStreamRequest:
    """The same, for a stream."""
    return pb.GenerateStreamRequest(input=generate_request(text, max_tokens).input)


@dataclass
class Failure:
    """How a call failed.

    Attributes:
        code: its status code.
        error: the error that its details spell; None if gRPC itself made the status.
    """

    code: grpc.StatusCode | None = None
    message: str = ""
    error: TwinflowError | None = None


@contextmanager
def failing() -> Iterator[Failure]:
    """Expect a call to fail, and say how."""
    failure = Failure()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield failure
    failure.code, failure.message = caught.value.code(), caught.value.details() or ""
    failure.error = rpc_status.from_trailers(failure.message, caught.value.trailing_metadata())


async def eventually(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it never became so"
        await asyncio.sleep(0.005)
