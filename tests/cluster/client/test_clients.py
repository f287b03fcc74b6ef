"""Both clients against a real gRPC door."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
import pytest
from tests.support.fake_backend import Behaviour, FakeBackend, hashed_reply
from tests.support.grpc_doors import RunningDoor, eventually, running_door

import twinflow
from twinflow import AsyncClient, Client, SamplingParams
from twinflow.cluster.client import CallOptions, ServedModel, TextChunk, Tls, Usage
from twinflow.cluster.gateway.backend import Readiness
from twinflow.protos.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ServerError,
    TwinflowError,
    Unauthenticated,
    Unavailable,
    WorkerLost,
)
from twinflow.runtime.outputs import FinishReason
from twinflow.runtime.speculative.account import SpeculationAccount


@dataclass
class Driver:
    """One of the two clients, driven by the same test."""

    client: Any

    async def run(self, name: str, *arguments: Any, **options: Any) -> Any:
        method = getattr(self.client, name)
        if isinstance(self.client, AsyncClient):
            return await method(*arguments, **options)
        return await asyncio.to_thread(method, *arguments, **options)

    async def stream(self, *arguments: Any, **options: Any) -> AsyncIterator[TextChunk]:
        chunks = self.client.stream(*arguments, **options)
        if isinstance(self.client, AsyncClient):
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                await chunks.aclose()
            return
        try:
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                yield chunk
        finally:
            await asyncio.to_thread(chunks.close)

    async def close(self) -> None:
        await self.run("close")


@pytest.fixture(params=[Client, AsyncClient])
def connect(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Opens a client, blocking or awaiting, to a door or a target."""

    @asynccontextmanager
    async def opened(where: RunningDoor | str, **options: Any) -> AsyncIterator[Driver]:
        target = where if isinstance(where, str) else where.target
        driver = Driver(request.param(target, **{"timeout_s": 20.0, **options}))
        try:
            yield driver
        finally:
            await driver.close()

    return opened


async def test_generate(connect: Callable[..., Any]) -> None:
    account = SpeculationAccount(3, 9, 5, [3, 2])
    behaviour = Behaviour(reply=lambda _: b"Paris.", cached_tokens=2, speculation=account)
    backend = FakeBackend(behaviour)
    async with running_door(backend) as door, connect(door) as client:
        output = await client.run("generate", "Capital?", max_tokens=20, stop=["."], logprobs=1)
    [completion] = output.outputs
    assert (output.prompt, bytes(output.prompt_token_ids)) == ("Capital?", b"Capital?")
    assert (completion.text, completion.finish_reason) == ("Paris", FinishReason.STOP)
    assert completion.stop_reason == "."
    assert bytes(completion.token_ids) == b"Paris."
    assert [entry.token_id for entry in completion.logprobs] == list(b"Paris.")
    assert output.cached_tokens == 2
    assert output.speculation == account
    assert output.request_id
    assert output.phases == ()


async def test_generate_takes_params_tokens_messages_and_options(
    connect: Callable[..., Any],
) -> None:
    backend = FakeBackend()
    options = CallOptions(model="tiny-alias", priority=4, cache_salt="s", timeline=True)
    params = SamplingParams(n=2, seed=5, max_tokens=3)
    async with running_door(backend) as door, connect(door) as client:
        output = await client.run("generate", None, params, token_ids=[1, 2], options=options)
        await client.run("generate", messages=[{"role": "user", "content": "Hi"}])
    assert [len(completion.token_ids) for completion in output.outputs] == [3, 3]
    assert output.prompt is None and output.prompt_token_ids == (1, 2)
    assert sum(phase.seconds for phase in output.phases) > 0
    first, _, chat = backend.specs
    assert (first.priority, first.cache_salt, first.params.max_tokens) == (4, "s", 3)
    assert bytes(chat.prompt_token_ids) == b"user: Hi\nassistant:"
    assert chat.params.max_tokens == SamplingParams().max_tokens


async def test_stream(connect: Callable[..., Any]) -> None:
    backend = FakeBackend(Behaviour(reply=hashed_reply))
    async with running_door(backend) as door, connect(door) as client:
        chunks = [chunk async for chunk in client.stream("Hi", n=2, seed=3, max_tokens=20)]
        whole = await client.run("generate", "Hi", n=2, seed=3, max_tokens=20)
    for completion in whole.outputs:
        own = [chunk for chunk in chunks if chunk.index == completion.index]
        assert "".join(chunk.text for chunk in own) == completion.text
        assert tuple(t for chunk in own for t in chunk.token_ids) == completion.token_ids
        assert [chunk.finish_reason for chunk in own][-1] is FinishReason.LENGTH
        assert all(chunk.finish_reason is None for chunk in own[:-1])
    assert chunks[-1].usage == Usage(prompt_tokens=2, completion_tokens=40)
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_tokenize_detokenize_model_info_and_ready(connect: Callable[..., Any]) -> None:
    backend = FakeBackend()
    async with running_door(backend) as door, connect(door) as client:
        assert bytes(await client.run("tokenize", "Hé")) == "Hé".encode()
        chat = [{"role": "user", "content": "Hi"}]
        assert bytes(await client.run("tokenize", messages=chat)) == b"user: Hi\nassistant:"
        assert await client.run("detokenize", list("Hé".encode())) == "Hé"
        info = await client.run("model_info")
        assert info == ServedModel(
            model="tiny",
            root="/models/tiny",
            max_model_len=256,
            vocab_size=258,
            dtype="float32",
            block_size=16,
            version=twinflow.__version__,
        )
        assert await client.run("ready") is True
        backend.ready = Readiness(ready=False, reason="starting")
        async with asyncio.timeout(5):
            while await client.run("ready"):
                await asyncio.sleep(0.02)


async def test_closing_a_stream_cancels_the_request(connect: Callable[..., Any]) -> None:
    backend = FakeBackend(Behaviour(delay_s=0.05))
    async with running_door(backend) as door, connect(door) as client:
        chunks = client.stream("Hi")
        assert (await anext(chunks)).text
        await chunks.aclose()
        await eventually(lambda: not backend.live and not door.door.calls, within_s=1.0)
    assert backend.outcomes == {"aborted": 1}


async def test_cancelling_the_task_cancels_the_request() -> None:
    backend = FakeBackend(Behaviour(first_delay_s=60))
    async with running_door(backend) as door, AsyncClient(door.target) as client:
        task = asyncio.create_task(client.generate("Hi"))
        await eventually(lambda: len(backend.live) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: not backend.live, within_s=1.0)


async def test_a_stream_that_is_dropped_is_cancelled() -> None:
    backend = FakeBackend(Behaviour(delay_s=0.05))

    def first_chunk(client: Client) -> str:
        return next(client.stream("Hi")).text

    async with running_door(backend) as door:
        with Client(door.target) as client:
            assert await asyncio.to_thread(first_chunk, client)
            await eventually(lambda: not backend.live, within_s=1.0)


@pytest.mark.parametrize(
    ("arguments", "error", "param"),
    [
        ({"prompt": "x" * 300}, ContextLengthExceeded, "prompt"),
        ({"prompt": "Hi", "max_tokens": 1000}, ContextLengthExceeded, "max_tokens"),
        ({"token_ids": [9999]}, InvalidRequest, "prompt"),
        ({"prompt": "Hi", "options": CallOptions(model="gpt-4")}, ModelNotFound, "model"),
        ({"messages": [{"role": "wizard", "content": ""}]}, InvalidRequest, "messages.0.role"),
    ],
)
async def test_errors_of_the_server_are_raised_as_they_were(
    connect: Callable[..., Any], arguments: Any, error: type[TwinflowError], param: str
) -> None:
    async with running_door() as door, connect(door) as client:
        with pytest.raises(error) as caught:
            await client.run("generate", **arguments)
        assert getattr(caught.value, "param", None) == param
        with pytest.raises(error):
            await anext(client.stream(**arguments))


async def test_errors_that_pass_say_when_to_come_back(connect: Callable[..., Any]) -> None:
    backend = FakeBackend()
    async with running_door(backend) as door, connect(door) as client:
        backend.max_sequences = 0
        with pytest.raises(Overloaded) as full:
            await client.run("generate", "Hi")
        backend.refusal = Unavailable("Starting.", retry_after_s=7.0)
        with pytest.raises(Unavailable, match="Starting") as starting:
            await client.run("generate", "Hi")
    assert (full.value.retry_after_s, starting.value.retry_after_s) == (2.0, 7.0)


async def test_a_stream_that_breaks_raises_after_what_came(connect: Callable[..., Any]) -> None:
    backend = FakeBackend(Behaviour(fail_after=3, error=WorkerLost("decode-0 is gone.")))
    text = ""
    async with running_door(backend) as door, connect(door) as client:
        with pytest.raises(WorkerLost, match="failed to process the request"):
            async for chunk in client.stream("Hi"):
                text += chunk.text
    assert len(text) == 3


@pytest.mark.parametrize("options", [{"timeout_s": 0.3}, {}])
async def test_deadlines_name_the_server_and_free_it(
    connect: Callable[..., Any], options: dict[str, float]
) -> None:
    backend = FakeBackend(Behaviour(first_delay_s=60))
    of_call = None if options else CallOptions(timeout_s=0.3)
    async with running_door(backend) as door, connect(door, **options) as client:
        with pytest.raises(DeadlineExceeded, match=rf"{door.target} did not finish .* 0\.3 s"):
            await client.run("generate", "Hi", options=of_call)
        with pytest.raises(DeadlineExceeded, match=door.target):
            await anext(client.stream("Hi", options=of_call))
        await eventually(lambda: not backend.live, within_s=1.0)


async def test_keys(connect: Callable[..., Any]) -> None:
    async with running_door(keys=("right",)) as door:
        async with connect(door, api_key="right") as client:
            assert (await client.run("generate", "Hi")).outputs
        async with connect(door, api_key="wrong") as client:
            with pytest.raises(Unauthenticated):
                await client.run("generate", "Hi")
            assert await client.run("ready") is True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_nobody_there(connect: Callable[..., Any]) -> None:
    target = f"127.0.0.1:{free_port()}"
    async with connect(target) as client:
        assert await client.run("ready") is False
        with pytest.raises(Unavailable, match=f"{target} cannot be reached"):
            await client.run("generate", "Hi")
        with pytest.raises(Unavailable, match=target):
            await anext(client.stream("Hi"))


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never says anything."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


async def test_somebody_silent_there(connect: Callable[..., Any], silent_port: int) -> None:
    target = f"127.0.0.1:{silent_port}"
    async with connect(target, connect_timeout_s=0.3) as client:
        with pytest.raises(Unavailable, match=f"{target} cannot be reached"):
            await client.run("generate", "Hi")


async def test_somebody_else_there(connect: Callable[..., Any]) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with connect(f"127.0.0.1:{port}") as client:
            with pytest.raises(ServerError, match="is it the gRPC port of a twinflow gateway"):
                await client.run("generate", "Hi")
    finally:
        await server.stop(None)


def threads_of_clients() -> int:
    """Threads apart from those in which the driver waits for a blocking client."""
    return sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate())


async def test_clients_leave_nothing(connect: Callable[..., Any]) -> None:
    async with running_door() as door:
        async with connect(door) as client:  # what gRPC starts once and keeps
            await client.run("generate", "Hi")
        files, threads = psutil.Process().num_fds(), threads_of_clients()
        for _ in range(10):
            async with connect(door) as client:
                await client.run("generate", "Hi")
        await eventually(lambda: psutil.Process().num_fds() <= files)
        await eventually(lambda: threads_of_clients() <= threads)


async def test_one_blocking_client_in_many_threads() -> None:
    async with running_door(FakeBackend(Behaviour(reply=hashed_reply))) as door:
        with Client(door.target) as client:
            outputs = await asyncio.gather(
                *(asyncio.to_thread(client.generate, f"p{i}", seed=1) for i in range(40))
            )
    assert [output.prompt for output in outputs] == [f"p{i}" for i in range(40)]
    assert len({output.outputs[0].text for output in outputs}) == 40


async def test_tls_and_mutual_tls(connect: Callable[..., Any]) -> None:
    trustme = pytest.importorskip("trustme", reason="makes certificates")
    authority, stranger = trustme.CA(), trustme.CA()
    root = authority.cert_pem.bytes()

    def identity(issuer: Any) -> tuple[bytes, bytes]:
        certificate = issuer.issue_cert("localhost", "127.0.0.1")
        return certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes()

    credentials = grpc.ssl_server_credentials([identity(authority)], root, True)
    key, chain = identity(authority)
    good = Tls(root_certificates=root, certificate_chain=chain, private_key=key)
    key, chain = identity(stranger)
    async with running_door(credentials=credentials) as door:
        async with connect(door, tls=good) as client:
            assert (await client.run("generate", "Hi")).outputs
        for tls in (
            None,
            Tls(root_certificates=root),
            Tls(root_certificates=root, certificate_chain=chain, private_key=key),
            Tls(root_certificates=stranger.cert_pem.bytes()),
        ):
            async with connect(door, tls=tls, connect_timeout_s=2.0) as client:
                with pytest.raises(Unavailable, match=f"{door.target} cannot be reached"):
                    await client.run("generate", "Hi")
