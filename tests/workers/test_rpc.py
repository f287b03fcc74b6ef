"""Who may call a worker, and how errors cross the wire."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from tests.support.rpc_peers import Unanswering, describe, freeze, line_of, process, serving
from tests.support.workers import TOKEN, attached, running, within, worker_config

from twinflow.protos import errors
from twinflow.protos.errors import ServerError, TwinflowError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.workers.rpc import (
    abort_call,
    call_metadata,
    create_server,
    error_of_call,
    open_channel,
)
from twinflow.workers.server import WorkerServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

Metadata = tuple[tuple[str, str], ...]
# Longer than keepalive takes, and much shorter than the minute that gRPC's own default takes.
FROZEN_S = 15.0


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def worker(model: Path) -> AsyncIterator[WorkerServer]:
    async with running(worker_config(model, "mixed-0")) as (worker,):
        yield worker


async def _unary(call: Any) -> None:
    await call


async def _stream(call: Any) -> None:
    await call.done_writing()
    while await call.read() is not grpc.aio.EOF:
        pass


CALLS: dict[str, tuple[Callable[[rpc.WorkerStub, Metadata], Any], Any]] = {
    "Describe": (lambda stub, m: stub.Describe(pb.DescribeRequest(), metadata=m), _unary),
    "Drain": (lambda stub, m: stub.Drain(pb.DrainRequest(), metadata=m), _unary),
    "LinkStore": (lambda stub, m: stub.LinkStore(pb.LinkStoreRequest(), metadata=m), _unary),
    "Attach": (lambda stub, m: stub.Attach(metadata=m), _stream),
    "Transfer": (lambda stub, m: stub.Transfer(metadata=m), _stream),
}
WRONG: dict[str, Metadata] = {
    "no token": (),
    "another token": call_metadata("another"),
    "an empty token": call_metadata(""),
    "part of the token": call_metadata(TOKEN[:-1]),
    "more than the token": call_metadata(TOKEN + "x"),
    "another scheme": (("authorization", f"Basic {TOKEN}"),),
    "the bare token": (("authorization", TOKEN),),
    "another key": (("x-authorization", f"Bearer {TOKEN}"),),
}


async def test_every_call_of_the_service_is_tried_here() -> None:
    methods = {name for name, _ in inspect.getmembers(rpc.WorkerServicer, inspect.isfunction)}
    assert methods == CALLS.keys()


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("method", CALLS)
async def test_calls_without_the_secret_are_refused(
    worker: WorkerServer, method: str, wrong: str
) -> None:
    begin, finish = CALLS[method]
    channel = open_channel(worker.description.address)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await within(finish(begin(rpc.WorkerStub(channel), WRONG[wrong])), "the refusal")
    await channel.close()
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert TOKEN not in (refused.value.details() or "")
    assert not worker.parts.core.state.draining


async def test_the_secret_opens_the_door(worker: WorkerServer) -> None:
    async with attached(worker) as gateway:
        assert gateway.stats.total_blocks == worker.description.num_blocks


async def test_unknown_methods_are_unknown_with_and_without_the_secret(
    worker: WorkerServer,
) -> None:
    channel = open_channel(worker.description.address)
    for metadata in (call_metadata(TOKEN), ()):
        call: Any = channel.unary_unary("/twinflow.internal.v1.Worker/Sudo")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await within(call(b"", metadata=metadata), "the refusal")
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    await channel.close()


def all_errors() -> list[type[TwinflowError]]:
    found = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]
    return [cls for cls in found if issubclass(cls, TwinflowError)]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: str(kind.__name__))
async def test_errors_are_the_same_at_the_other_end(kind: type[TwinflowError]) -> None:
    message = "it broke: on prefill-0, at « 7 »"

    class Failing(rpc.WorkerServicer):
        async def Describe(
            self,
            request: pb.DescribeRequest,
            context: "grpc.aio.ServicerContext[pb.DescribeRequest, pb.DescribeResponse]",
        ) -> pb.DescribeResponse:
            await abort_call(context, kind(message))

    server = create_server(TOKEN)
    port = server.add_insecure_port("127.0.0.1:0")
    rpc.add_WorkerServicer_to_server(Failing(), server)
    await server.start()
    channel = open_channel(f"127.0.0.1:{port}")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        stub = rpc.WorkerStub(channel)
        await stub.Describe(pb.DescribeRequest(), metadata=call_metadata(TOKEN))
    await channel.close()
    await server.stop(None)

    error = error_of_call(failed.value)
    assert failed.value.code().name == kind.grpc_status
    assert error.code == kind.code
    assert error.message == message


async def test_what_breaks_a_call_is_an_error_that_says_how() -> None:
    channel = open_channel("127.0.0.1:1")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await rpc.WorkerStub(channel).Describe(pb.DescribeRequest())
    await channel.close()
    error = error_of_call(failed.value)
    assert type(error) is ServerError
    assert error.message.startswith("unavailable: ")


@pytest.mark.slow
async def test_a_call_to_a_frozen_process_fails_soon() -> None:
    """Nothing says so: its sockets are open, and the kernel goes on taking what is sent."""
    async with process("serve") as peer:
        address = await within(line_of(peer), "the address")
        call = asyncio.create_task(describe(address))
        assert await within(line_of(peer), "the call") == "called"
        freeze(peer)
        async with asyncio.timeout(FROZEN_S):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call
    assert failed.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.slow
async def test_a_call_from_a_frozen_process_is_given_up_soon() -> None:
    called = asyncio.Event()
    service = Unanswering(called.set)
    async with serving(service) as address, process("call", address) as peer:
        await within(called.wait(), "the call")
        freeze(peer)
        async with asyncio.timeout(FROZEN_S):
            await service.given_up.wait()
