"""The awaiting client.

It belongs to the event loop that first uses it. Waiting is all that this module does.
"""

from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from twinflow.cluster.client.operations import Operation, Operations, ResultT
from twinflow.cluster.client.request import (
    CallOptions,
    ChatMessage,
    Generation,
    SamplingFields,
    Source,
    generation,
)
from twinflow.cluster.client.response import ChunkReader, ServedModel, TextChunk
from twinflow.cluster.client.session import Ask, Session, Tls
from twinflow.protos.errors import TwinflowError
from twinflow.runtime.outputs import RequestOutput
from twinflow.runtime.sampling_params import SamplingParams


class AsyncClient:
    """A connection to a twinflow gateway; takes what `Client` takes and raises what it raises.

        async with AsyncClient("localhost:50051") as client:
            async for chunk in client.stream("Once upon a time", max_tokens=64):
                print(chunk.text, end="", flush=True)

    Cancelling a task that waits for a method cancels the request.
    """

    def __init__(
        self,
        target: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        connect_timeout_s: float = 10.0,
        tls: Tls | None = None,
        insecure: bool = False,
    ) -> None:
        self._session = Session(
            target=target,
            api_key=api_key,
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            tls=tls,
            insecure=insecure,
        )
        self._operations = Operations()
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel the calls in progress and close the connection."""
        if self._channel is not None:
            await self._channel.close()

    async def generate(
        self,
        prompt: str | None = None,
        params: SamplingParams | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Sequence[ChatMessage] | None = None,
        options: CallOptions | None = None,
        **sampling: Unpack[SamplingFields],
    ) -> RequestOutput:
        """Generate, and wait for all of it; see `Client.generate`."""
        source = Source(prompt, token_ids, messages)
        wanted = generation(source, params, options, sampling)
        return await self._run(self._operations.generate(wanted))

    def stream(
        self,
        prompt: str | None = None,
        params: SamplingParams | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Sequence[ChatMessage] | None = None,
        options: CallOptions | None = None,
        **sampling: Unpack[SamplingFields],
    ) -> AsyncGenerator[TextChunk, None]:
        """Generate, and yield text as it comes; takes what `Client.generate` takes.

        `aclose` of the generator cancels the request.
        """
        source = Source(prompt, token_ids, messages)
        return self._chunks(generation(source, params, options, sampling))

    async def tokenize(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        add_special_tokens: bool | None = None,
        options: CallOptions | None = None,
    ) -> tuple[int, ...]:
        """The tokens that the model would be fed for a text or a conversation."""
        source = Source(prompt, None, messages)
        return await self._run(self._operations.tokenize(source, add_special_tokens, options))

    async def detokenize(
        self, token_ids: Sequence[int], *, options: CallOptions | None = None
    ) -> str:
        """The text of tokens."""
        return await self._run(self._operations.detokenize(token_ids, options))

    async def model_info(self, *, timeout_s: float | None = None) -> ServedModel:
        """What is served."""
        return await self._run(self._operations.model_info(timeout_s))

    async def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether a request sent now would be served; False if nobody answers."""
        return await self._run(self._operations.ready(timeout_s))

    def _open(self) -> grpc.aio.Channel:
        # On first use: a channel binds to the running loop, and there may be none before.
        if self._channel is None:
            session, options = self._session, self._session.channel_options
            if session.tls is None:
                self._channel = grpc.aio.insecure_channel(session.target, options)
            else:
                credentials = session.tls.credentials()
                self._channel = grpc.aio.secure_channel(session.target, credentials, options)
        return self._channel

    async def _run(self, operation: Operation[ResultT]) -> ResultT:
        try:
            ask = next(operation)
            while True:
                try:
                    response = await self._call(ask)
                except TwinflowError as error:
                    ask = operation.throw(error)
                else:
                    ask = operation.send(response)
        except StopIteration as end:
            result: ResultT = end.value
            return result

    async def _call(self, ask: Ask[Any, Any]) -> Any:
        deadline_s = self._session.deadline_s(ask.timeout_s)
        method = self._open().unary_unary(ask.rpc.path, ask.rpc.encode, ask.rpc.decode)
        with self._session.failures(ask.rpc, deadline_s):
            return await method(ask.request, timeout=deadline_s, metadata=self._session.metadata)

    async def _chunks(self, wanted: Generation) -> AsyncGenerator[TextChunk, None]:
        ask = await self._run(self._operations.start_stream(wanted))
        deadline_s = self._session.deadline_s(ask.timeout_s)
        method = self._open().unary_stream(ask.rpc.path, ask.rpc.encode, ask.rpc.decode)
        call = method(ask.request, timeout=deadline_s, metadata=self._session.metadata)
        reader = ChunkReader()
        try:
            with self._session.failures(ask.rpc, deadline_s):
                async for response in call:
                    for chunk in reader.chunks(response):
                        yield chunk
            reader.check_complete()
        finally:
            call.cancel()
