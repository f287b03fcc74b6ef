"""A backend with behaviour, for tests of what stands before it.

The backend produces deterministic tokens at a set pace, can fail in the middle, be full or be
draining, and accounts for every sequence, so that a test can demand that none is left. A token is
one byte of UTF-8.
"""

import asyncio
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from twinflow.cluster.gateway.backend import GenerationSpec, ModelInfo, Readiness, WorkerInfo
from twinflow.protos.errors import InvalidRequest, Overloaded, TwinflowError, WorkerLost
from twinflow.runtime.outputs import FinishReason, PhaseTime, TokenDelta, TokenLogprobs
from twinflow.runtime.speculative.account import SpeculationAccount

EOS = 257
VOCAB_SIZE = 258


def fake_model(max_model_len: int = 256) -> ModelInfo:
    """A model whose tokens are bytes; 256 stands for nothing and 257 ends the text."""
    return ModelInfo(
        name="tiny",
        aliases=("tiny-alias",),
        root="/models/tiny",
        max_model_len=max_model_len,
        vocab_size=VOCAB_SIZE,
        dtype="float32",
        block_size=16,
        created=1_700_000_000,
    )


def hashed_reply(spec: GenerationSpec) -> bytes:
    """48 letters that depend on the prompt and, unless greedy, on the seed."""
    seed = 0 if spec.params.greedy else spec.params.seed
    digest = hashlib.sha256(repr((spec.prompt_token_ids, seed)).encode()).hexdigest()
    return digest[:48].translate(str.maketrans("0123456789", "ghijklmnop")).encode()


@dataclass
class Behaviour:
    """How the sequences of a `FakeBackend` go.

    Attributes:
        reply: the tokens that a sequence produces before its end of text.
        tokens_per_delta: tokens that arrive together.
        first_delay_s: time before the first token.
        delay_s: time before every later delta.
        fail_after: raise `error` instead of token number `fail_after`.
        error: what `fail_after` raises.
        cached_tokens: prompt tokens reported as found in a prefix cache.
        speculation: reported with every delta.
    """

    reply: Callable[[GenerationSpec], Sequence[int]] = hashed_reply
    tokens_per_delta: int = 1
    first_delay_s: float = 0.0
    delay_s: float = 0.0
    fail_after: int | None = None
    error: Exception = field(default_factory=lambda: WorkerLost("worker decode-0 at 10.0.0.7 died"))
    cached_tokens: int = 0
    speculation: SpeculationAccount | None = None


class FakeBackend:
    """Implements `twinflow.cluster.gateway.backend.Backend` without workers.

    Attributes:
        behaviour: may be replaced between requests.
        max_sequences: admission raises Overloaded above this many reserved or live ones.
        max_prompt_tokens: admission refuses longer prompts, as a pool without enough blocks does.
        refusal: admission raises this, if set (draining, starting); see also `refuse_next`.
        ready: what `readiness` answers, after `readiness_delay_s`.
        is_alive: what `alive` answers.
        model_error: what `model` raises, if set.
        worker_infos: what `workers` answers.
        specs: every admitted sequence.
        reserved: admitted, neither generating nor released yet.
        live: generating.
        outcomes: how the others ended: finished, aborted, failed, released.
    """

    def __init__(self, behaviour: Behaviour | None = None, model: ModelInfo | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self.max_sequences = 10_000
        self.max_prompt_tokens = 10**9
        self.refusal: TwinflowError | None = None
        self.ready = Readiness(ready=True, pairs=("prefill-0→decode-0: ok",))
        self.readiness_delay_s = 0.0
        self.is_alive = True
        self.model_error: TwinflowError | None = None
        self.worker_infos: tuple[WorkerInfo, ...] = ()
        self.specs: list[GenerationSpec] = []
        self.reserved: set[str] = set()
        self.live: set[str] = set()
        self.outcomes: Counter[str] = Counter()
        self._model = model or fake_model()
        self._refusals: list[TwinflowError] = []

    @property
    def model(self) -> ModelInfo:
        if self.model_error is not None:
            raise self.model_error
        return self._model

    def workers(self) -> tuple[WorkerInfo, ...]:
        return self.worker_infos

    def refuse_next(self, refusal: TwinflowError, times: int) -> None:
        """Let admission raise `refusal` so many times."""
        self._refusals = [refusal] * times

    def admit(self, specs: tuple[GenerationSpec, ...]) -> None:
        if self._refusals:
            raise self._refusals.pop()
        if self.refusal is not None:
            raise self.refusal
        if any(len(spec.prompt_token_ids) > self.max_prompt_tokens for spec in specs):
            raise InvalidRequest("The prompt needs more KV blocks than the pool has.", "prompt")
        if len(self.reserved) + len(self.live) + len(specs) > self.max_sequences:
            raise Overloaded(f"{self.max_sequences} sequences are queued.", retry_after_s=2.0)
        self.reserved.update(spec.request_id for spec in specs)
        self.specs.extend(specs)

    def release(self, spec: GenerationSpec) -> None:
        self.reserved.remove(spec.request_id)
        self.outcomes["released"] += 1

    async def generate(self, spec: GenerationSpec) -> AsyncIterator[TokenDelta]:
        self.reserved.remove(spec.request_id)
        self.live.add(spec.request_id)
        outcome = "aborted"
        try:
            async for delta in self._deltas(spec):
                if delta.finish_reason is not None:
                    outcome = "finished"
                yield delta
        except Exception:
            outcome = "failed"
            raise
        finally:
            self.live.remove(spec.request_id)
            self.outcomes[outcome] += 1

    async def readiness(self) -> Readiness:
        await asyncio.sleep(self.readiness_delay_s)
        return self.ready

    def alive(self) -> bool:
        return self.is_alive

    def check_integrity(self) -> None:
        """Assert that every admitted sequence had exactly one outcome and none is left."""
        assert not self.reserved, self.reserved
        assert not self.live, self.live
        assert sum(self.outcomes.values()) == len(self.specs), (self.outcomes, len(self.specs))

    async def _deltas(self, spec: GenerationSpec) -> AsyncIterator[TokenDelta]:
        behaviour = self.behaviour
        started = time.monotonic()
        await asyncio.sleep(behaviour.first_delay_s)
        first_token = time.monotonic()
        chunk: list[int] = []
        produced = 0
        for token, end in _tokens(behaviour.reply(spec), spec):
            chunk.append(token)
            if end is None and len(chunk) < behaviour.tokens_per_delta:
                continue
            if behaviour.fail_after is not None and produced >= behaviour.fail_after:
                raise behaviour.error
            if produced:
                await asyncio.sleep(behaviour.delay_s)
            yield TokenDelta(
                token_ids=tuple(chunk),
                logprobs=_logprobs(chunk, spec.params.logprobs),
                finish_reason=end,
                stop_token_id=token if end is FinishReason.STOP else None,
                cached_tokens=behaviour.cached_tokens,
                speculation=behaviour.speculation,
                phases=_phases(started, first_token) if end or not produced else (),
            )
            produced += len(chunk)
            chunk.clear()


def _tokens(
    reply: Sequence[int], spec: GenerationSpec
) -> Iterator[tuple[int, FinishReason | None]]:
    """The tokens of a sequence, the last one with the reason why it is the last."""
    params = spec.params
    assert params.max_tokens is not None and params.n == 1 and params.seed is not None
    endings = set(params.stop_token_ids) if params.ignore_eos else {EOS, *params.stop_token_ids}
    text = reply if params.ignore_eos else (*reply, EOS)
    for count, token in enumerate(itertools.cycle(text), start=1):
        if token in endings and count >= params.min_tokens:
            yield token, FinishReason.STOP
            return
        if count == params.max_tokens:
            yield token, FinishReason.LENGTH
            return
        yield token, None


def _logprobs(tokens: Sequence[int], top: int | None) -> tuple[TokenLogprobs, ...]:
    if top is None:
        return ()
    return tuple(
        TokenLogprobs(
            token, -0.5, tuple(((token + rank) % 256, -0.5 - rank) for rank in range(top))
        )
        for token in tokens
    )


def _phases(started: float, first_token: float) -> tuple[PhaseTime, ...]:
    prefill = first_token - started
    return (
        PhaseTime("queue", 0.0),
        PhaseTime("prefill", prefill),
        PhaseTime("decode", time.monotonic() - first_token),
    )
