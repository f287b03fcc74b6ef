"""What both front doors do with a validated request.

    render, tokenise ─► ids and seeds ─► admit all or nothing ─┐
      deltas of text ◄─ detokenise, watch stop strings ◄─ run ◄┘

Nothing here knows HTTP, gRPC or a worker.
"""

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
from twinflow.cluster.gateway.prompt_reader import PromptReader
from twinflow.cluster.gateway.siblings import one_first
from twinflow.cluster.gateway.text_protocols import TextCodec
from twinflow.cluster.gateway.timeline import Milestones
from twinflow.cluster.gateway.validation import (
    ChatPrompt,
    DetokenizeRequest,
    GenerationRequest,
    Prompt,
    TokenizeRequest,
    fit_to_context,
)
from twinflow.protos.errors import DeadlineExceeded, EngineError, Overloaded, Unavailable
from twinflow.runtime.outputs import TokenDelta
from twinflow.runtime.sampling_params import SamplingParams, completion_seed

# The backend enforces a request's deadline and knows who missed it; this much later the pipeline
# stops waiting for the backend itself.
_DEADLINE_GRACE_S = 5.0


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
        self._reader = PromptReader(codec, metrics.rejected)
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
            Overloaded: no room in the queues, or to read the prompts; nothing was started.
            Unavailable: no worker could serve it.
            DeadlineExceeded: the deadline passed before admission.
        """
        milestones = Milestones(call.received_at, validated=self._clock())
        prompts = await self._reader.read(request.prompts)
        milestones.tokenized = self._clock()
        sequences = self._sequences(request, prompts, call)
        self._admit(sequences, sum(len(prompt) for prompt in prompts))
        milestones.admitted = self._clock()
        timeout_s = sequences[0].spec.deadline_s + _DEADLINE_GRACE_S
        deltas = merge(self._streams(sequences, request.params.n), timeout_s)
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
        """See `PromptReader.tokenize`."""
        return await self._reader.tokenize(request)

    async def detokenize(self, request: DetokenizeRequest) -> str:
        """See `PromptReader.detokenize`."""
        return await self._reader.detokenize(request)

    def count_rejection(self, error: Overloaded) -> None:
        """A front door had no room for a request that it had not read yet."""
        self._metrics.rejected(error)

    def _sequences(
        self, request: GenerationRequest, prompts: Sequence[tuple[int, ...]], call: Call
    ) -> tuple[RunningSequence, ...]:
        deadline = call.received_at + call.deadline_s
        deadline_s = deadline - self._clock()
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
                found.append(RunningSequence(len(found), spec, text, deadline))
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

    def _streams(
        self, sequences: Sequence[RunningSequence], per_prompt: int
    ) -> list[AsyncGenerator[CompletionDelta, None]]:
        """The stream of each sequence; those of a long prompt wait for its first one."""
        found: list[AsyncGenerator[CompletionDelta, None]] = []
        for start in range(0, len(sequences), per_prompt):
            siblings = sequences[start : start + per_prompt]
            if len(siblings[0].spec.prompt_token_ids) > self.model.block_size:
                found += one_first(siblings, self._run)
            else:  # less than a block: no cache would have it
                found += [self._run(sequence) for sequence in siblings]
        return found

    async def _run(self, sequence: RunningSequence) -> AsyncGenerator[CompletionDelta, None]:
        sequence.started = True
        left_s = max(0.0, sequence.deadline - self._clock())
        spec = replace(sequence.spec, deadline_s=left_s)
        tokens = cast(AsyncGenerator[TokenDelta, None], self._backend.generate(spec))
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
                    speculation=delta.speculation,
                )
                if piece.finish_reason is not None:
                    return
        raise EngineError("A sequence ended without a reason.")
