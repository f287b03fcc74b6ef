"""The blocking client.

Its methods may be called from several threads at once. Waiting is all that this module does.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Unpack

from twinflow.cluster.client.blocking import BlockingClient
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
from twinflow.cluster.client.session import Session, Tls
from twinflow.protos.errors import TwinflowError
from twinflow.runtime.outputs import RequestOutput
from twinflow.runtime.sampling_params import SamplingParams


class Client(BlockingClient):
    """A connection to a twinflow gateway.

        with Client("localhost:50051", api_key="...") as client:
            for chunk in client.stream("Once upon a time", max_tokens=64):
                print(chunk.text, end="", flush=True)

    Args:
        target: `host:port` of the gateway's gRPC door.
        api_key: a key of the gateway, if it asks for one.
        timeout_s: deadline of each call that does not have its own.
        connect_timeout_s: how long a connection may take.
        tls: how to trust the gateway; needed if it is on another machine.
        insecure: talk to another machine in clear text.

    Raises:
        ConfigError: the arguments do not go together.

    Every method raises the errors of `twinflow.protos.errors`: what the gateway raised,
    `Unavailable` if it cannot be reached and `DeadlineExceeded` after the deadline.
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
        super().__init__(
            Session(
                target=target,
                api_key=api_key,
                timeout_s=timeout_s,
                connect_timeout_s=connect_timeout_s,
                tls=tls,
                insecure=insecure,
            )
        )
        self._operations = Operations()

    def generate(
        self,
        prompt: str | None = None,
        params: SamplingParams | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Sequence[ChatMessage] | None = None,
        options: CallOptions | None = None,
        **sampling: Unpack[SamplingFields],
    ) -> RequestOutput:
        """Generate, and wait for all of it.

            client.generate("2 + 2 =", max_tokens=4, temperature=0.0).outputs[0].text
            client.generate(messages=[{"role": "user", "content": "Hi"}], max_tokens=32)

        Args:
            prompt: text to continue; or else
            token_ids: tokens to continue; or else
            messages: a conversation to answer.
            params: how to choose tokens and when to stop.
            options: everything else about the request.
            **sampling: fields of `SamplingParams`, over those of `params`.
        """
        source = Source(prompt, token_ids, messages)
        return self._run(self._operations.generate(generation(source, params, options, sampling)))

    def stream(
        self,
        prompt: str | None = None,
        params: SamplingParams | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Sequence[ChatMessage] | None = None,
        options: CallOptions | None = None,
        **sampling: Unpack[SamplingFields],
    ) -> Generator[TextChunk, None, None]:
        """Generate, and yield text as it comes; takes what `generate` takes.

        Closing the generator, or dropping it, cancels the request.
        """
        source = Source(prompt, token_ids, messages)
        return self._chunks(generation(source, params, options, sampling))

    def tokenize(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        add_special_tokens: bool | None = None,
        options: CallOptions | None = None,
    ) -> tuple[int, ...]:
        """The tokens that the model would be fed for a text or a conversation."""
        source = Source(prompt, None, messages)
        return self._run(self._operations.tokenize(source, add_special_tokens, options))

    def detokenize(self, token_ids: Sequence[int], *, options: CallOptions | None = None) -> str:
        """The text of tokens."""
        return self._run(self._operations.detokenize(token_ids, options))

    def model_info(self, *, timeout_s: float | None = None) -> ServedModel:
        """What is served."""
        return self._run(self._operations.model_info(timeout_s))

    def ready(self, *, timeout_s: float | None = None) -> bool:
        """Whether a request sent now would be served; False if nobody answers."""
        return self._run(self._operations.ready(timeout_s))

    def _run(self, operation: Operation[ResultT]) -> ResultT:
        try:
            ask = next(operation)
            while True:
                try:
                    response = self._calls.unary(ask)
                except TwinflowError as error:
                    ask = operation.throw(error)
                else:
                    ask = operation.send(response)
        except StopIteration as end:
            result: ResultT = end.value
            return result

    def _chunks(self, wanted: Generation) -> Generator[TextChunk, None, None]:
        ask = self._run(self._operations.start_stream(wanted))
        reader = ChunkReader()
        with closing(self._calls.stream(ask)) as responses:
            for response in responses:
                yield from reader.chunks(response)
        reader.check_complete()
