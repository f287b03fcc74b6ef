"""What both front doors do with a validated request.

    render the chat ─► tokenise ─► ids and seeds ─► admit all or nothing ─┐
                 deltas of text ◄─ detokenise, watch stop strings ◄─ run ◄┘

Nothing here knows HTTP, gRPC or a worker.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import cast

from twinflow.cluster.gateway.backend import Backend, GenerationSpec, ModelInfo
from twinflow.cluster.gateway.generation import CompletionDelta, Generation, RunningSequence
from twinflow.cluster.gateway.merge import merge
from twinflow.cluster.gateway.metrics import GatewayMetrics
from twinflow.cluster.gateway.text_protocols import TextCodec
from twinflow.cluster.gateway.timeline import Milestones
from twinflow.cluster.gateway.validation import (
    ChatPrompt,
    DetokenizeRequest,
    GenerationRequest,
    Prompt,
    TextPrompt,
    TokenizeRequest,
    TokenPrompt,
    fit_to_context,
)
from twinflow.protos.errors import (
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from twinflow.runtime.outputs import TokenDelta
from twinflow.runtime.sampling_params import SamplingParams, completion_seed

# Shorter texts are tokenised faster than a thread is reached.
_INLINE_CHARACTERS = 4096
# The backend enforces a request's deadline and knows who missed it; this much later the pipeline
# stops waiting for the backend itself.
_DEADLINE_GRACE_S = 5.0
# OpenAI's newer name for the role that templates know as `system`.
_TEMPLATE_ROLES = {"developer": "system"}


@dataclass(frozen=True, slots=True)
class Call:
    """What a front door knows of the call that brought a request.

    Attributes:
        request_id: made by the server, unique.
        received_at: when the call arrived, by the pipeline's clock.
        api_key_id: who calls; empty without authentication.
        deadline_s: time the call may take, from its arrival.
    """

    request_id: str
    received_at: float
    api_key_id: str = ""
    deadline_s: float = 600.0


class TextPipeline:
    """Runs validated requests on a backend.

    Args:
        backend: runs token sequences.
        codec: the model's tokenizer, chat template and detokenisation.
        metrics: counts what happens.
        clock: seconds, monotonic.
        new_seed: seed of a request that brings none, in [0, 2^64).
    """

    def __init__(
        self,
        backend: Backend,
        codec: TextCodec,
        metrics: GatewayMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        new_seed: Callable[[], int] = lambda: secrets.randbits(63),
    ) -> None:
        self._backend = backend
        self._codec = codec
        self._metrics = metrics
        self._clock = clock
        self._new_seed = new_seed

    @property
    def model(self) -> ModelInfo:
        """The served model."""
        return self._backend.model

    @property
    def clock(self) -> Callable[[], float]:
        """The clock that `Call.received_at` is read from."""
        return self._clock

    @property
    def codec(self) -> TextCodec:
        """The model's tokenizer, chat template and detokenisation."""
        return self._codec

    @asynccontextmanager
    async def open(self, request: GenerationRequest, call: Call) -> AsyncIterator[Generation]:
        """Admit a request; leaving the context aborts what has not finished.

        Raises:
            InvalidRequest: the conversation cannot be rendered, or does not fit the context.
            Overloaded: no room in the queues; nothing was started.
            Unavailable: no worker could serve it.
            DeadlineExceeded: the deadline passed before admission.
        """
        milestones = Milestones(call.received_at, validated=self._clock())
        prompts = [await self._prompt_tokens(prompt) for prompt in request.prompts]
        milestones.tokenized = self._clock()
        sequences = self._sequences(request, prompts, call)
        self._admit(sequences, sum(len(prompt) for prompt in prompts))
        milestones.admitted = self._clock()
        timeout_s = sequences[0].spec.deadline_s + _DEADLINE_GRACE_S
        deltas = merge([self._run(sequence) for sequence in sequences], timeout_s)
        generation = Generation(
            self.model.name,
            tuple(prompts),
            request.params.n,
            sequences,
            deltas,
            milestones,
            self._metrics,
            self._clock,
        )
        try:
            async with aclosing(deltas):
                yield generation
        finally:
            generation.settle()
            for sequence in sequences:
                if not sequence.started:
                    self._backend.release(sequence.spec)

    async def tokenize(self, request: TokenizeRequest) -> tuple[int, ...]:
        """The tokens that a text or a conversation becomes.

        Raises:
            InvalidRequest: the conversation cannot be rendered.
        """
        match request.prompt:
            case ChatPrompt():
                text = await self._render(request.prompt, request.add_generation_prompt)
            case TextPrompt(text):
                pass
        return await self._encode(text, add_special_tokens=request.add_special_tokens)

    async def detokenize(self, request: DetokenizeRequest) -> str:
        """The text of tokens, special tokens included."""
        decode = self._codec.tokenizer.decode
        if len(request.token_ids) <= _INLINE_CHARACTERS:
            return decode(request.token_ids, skip_special_tokens=False)
        return await asyncio.to_thread(decode, request.token_ids, skip_special_tokens=False)

    async def _prompt_tokens(self, prompt: Prompt) -> tuple[int, ...]:
        match prompt:
            case TokenPrompt(token_ids):
                return token_ids
            case TextPrompt(text):
                tokens = await self._encode(text, add_special_tokens=True)
            case ChatPrompt():
                text = await self._render(prompt, add_generation_prompt=True)
                tokens = await self._encode(text, add_special_tokens=False)
        if not tokens:
            raise InvalidRequest("The prompt has no tokens.", "prompt")
        return tokens

    async def _render(self, prompt: ChatPrompt, add_generation_prompt: bool) -> str:
        renderer = self._codec.renderer
        if renderer is None:
            raise InvalidRequest("The model has no chat template; use /v1/completions.", "messages")
        messages = [
            {"role": _TEMPLATE_ROLES.get(m.role, m.role), "content": m.content}
            for m in prompt.messages
        ]
        return await renderer.render(messages, add_generation_prompt)

    async def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        encode = self._codec.tokenizer.encode
        if len(text) <= _INLINE_CHARACTERS:
            return tuple(encode(text, add_special_tokens=add_special_tokens))
        return tuple(await asyncio.to_thread(encode, text, add_special_tokens=add_special_tokens))

    def _sequences(
        self, request: GenerationRequest, prompts: Sequence[tuple[int, ...]], call: Call
    ) -> tuple[RunningSequence, ...]:
        deadline_s = call.deadline_s - (self._clock() - call.received_at)
        if deadline_s <= 0:
            raise DeadlineExceeded("The request's deadline passed before it was admitted.")
        found: list[RunningSequence] = []
        for prompt, tokens in zip(request.prompts, prompts, strict=True):
            for params in self._params(request.params, prompt, len(tokens)):
                spec = GenerationSpec(
                    request_id=f"{call.request_id}-{len(found)}",
                    prompt_token_ids=tokens,
                    params=params,
                    priority=request.options.priority,
                    cache_salt=request.options.cache_salt,
                    deadline_s=deadline_s,
                    api_key_id=call.api_key_id,
                )
                text = self._codec.sequence_text(params, tokens)
                found.append(RunningSequence(len(found), spec, text))
        return tuple(found)

    def _params(
        self, params: SamplingParams, prompt: Prompt, prompt_tokens: int
    ) -> list[SamplingParams]:
        """The parameters of each completion of a prompt."""
        field = "messages" if isinstance(prompt, ChatPrompt) else "prompt"
        fitted = fit_to_context(params, prompt_tokens, self.model.max_model_len, field)
        # Without a seed, two equal prompts of a request are independent too.
        seed = self._new_seed() if params.seed is None else params.seed
        return [replace(fitted, n=1, seed=completion_seed(seed, i)) for i in range(params.n)]

    def _admit(self, sequences: Sequence[RunningSequence], prompt_tokens: int) -> None:
        try:
            self._backend.admit(tuple(sequence.spec for sequence in sequences))
        except (Overloaded, Unavailable) as error:
            self._metrics.rejected(error)
            raise
        self._metrics.accepted(len(sequences), prompt_tokens)

    async def _run(self, sequence: RunningSequence) -> AsyncGenerator[CompletionDelta, None]:
        sequence.started = True
        tokens = cast(AsyncGenerator[TokenDelta, None], self._backend.generate(sequence.spec))
        async with aclosing(tokens):
            async for delta in tokens:
                piece = sequence.text.push(delta)
                yield CompletionDelta(
                    index=sequence.index,
                    text=piece.text,
                    token_ids=piece.token_ids,
                    logprobs=piece.logprobs,
                    finish_reason=piece.finish_reason,
                    stop_reason=piece.stop_reason,
                    phases=delta.phases,
                    cached_tokens=delta.cached_tokens,
                )
                if piece.finish_reason is not None:
                    return
        raise EngineError("A sequence ended without a reason.")
