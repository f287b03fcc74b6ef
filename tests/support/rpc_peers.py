"""A process at one end of an internal call that nobody answers, to be frozen.

`python -m tests.support.rpc_peers serve` prints its address, and `called` when the call has come.
`python -m tests.support.rpc_peers call ADDRESS` makes the call.
"""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.workers.rpc import call_metadata, create_server, open_channel

_TOKEN = "secret of the peers"
_ROOT = Path(__file__).resolve().parents[2]


class Unanswering(rpc.WorkerServicer):
    """Takes calls and never answers.

    Args:
        on_call: told when a call has come.

    Attributes:
        given_up: whether a call ended without an answer.
    """

    def __init__(self, on_call: Callable[[], None]) -> None:
        self._on_call = on_call
        self.given_up = asyncio.Event()

    async def Describe(
        self,
        request: pb.DescribeRequest,
        context: "grpc.aio.ServicerContext[pb.DescribeRequest, pb.DescribeResponse]",
    ) -> pb.DescribeResponse:
        self._on_call()
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up.set()
        return pb.DescribeResponse()


@asynccontextmanager
async def serving(service: Unanswering) -> AsyncIterator[str]:
    """A server in this process; yields its address."""
    server = create_server(_TOKEN)
    port = server.add_insecure_port("127.0.0.1:0")
    rpc.add_WorkerServicer_to_server(service, server)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def describe(address: str) -> None:
    """The call."""
    channel = open_channel(address)
    try:
        stub = rpc.WorkerStub(channel)
        await stub.Describe(pb.DescribeRequest(), metadata=call_metadata(_TOKEN))
    finally:
        await channel.close()


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[Process]:
    """One of the two in a process of its own, killed at the end."""
    command = (sys.executable, "-m", "tests.support.rpc_peers", *arguments)
    peer = await asyncio.create_subprocess_exec(*command, cwd=_ROOT, stdout=PIPE)
    try:
        yield peer
    finally:
        peer.kill()
        await peer.wait()


async def line_of(peer: Process) -> str:
    """The next line that a process prints."""
    assert peer.stdout is not None
    return (await peer.stdout.readline()).decode().strip()


def freeze(peer: Process) -> None:
    """The process does nothing any more, and its sockets stay open."""
    peer.send_signal(signal.SIGSTOP)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def _serve() -> None:
    async with serving(Unanswering(lambda: _say("called"))) as address:
        _say(address)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve() if sys.argv[1] == "serve" else describe(sys.argv[2]))
