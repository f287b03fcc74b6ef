"""A request while it generates: its merged stream, and the accounts kept over it.

It is handed out by `TextPipeline.open` and closed by it. Nothing here knows HTTP or gRPC.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from twinflow.cluster.gateway.backend import GenerationSpec
from twinflow.cluster.gateway.metrics import GatewayMetrics
from twinflow.cluster.gateway.text_protocols import SequenceText
from twinflow.cluster.gateway.timeline import Milestones, Timeline, prolonged, timeline
from twinflow.protos.errors import TwinflowError
from twinflow.runtime.outputs import CompletionOutput, FinishReason, PhaseTime, TokenLogprobs
from twinflow.runtime.speculative.account import SpeculationAccount, together


@dataclass(frozen=True, slots=True)
class CompletionDelta:
    """New output of one completion.

    Attributes:
        index: completion number, counting all completions of all prompts.
        text: may be empty while a character is incomplete or a stop string could begin.
        token_ids: the tokens behind it.
        logprobs: one entry per token, or empty when they were not asked for.
        finish_reason: set in the last delta of the completion.
        stop_reason: the stop string or stop token that ended it.
        phases: where the time on the workers went so far, if the backend told with this delta.
        cached_tokens: prompt tokens found in a prefix cache.
        speculation: what became of tokens proposed to it so far; None if none were.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    phases: tuple[PhaseTime, ...] = ()
    cached_tokens: int = 0
    speculation: SpeculationAccount | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request: each prompt counts once, every delivered token counts.

    Attributes:
        prompt_tokens: of all prompts.
        completion_tokens: of all completions.
        cached_tokens: prompt tokens found in a prefix cache.
        speculation: what became of tokens proposed to all completions, on the workers that ended
            them; None if none were.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    speculation: SpeculationAccount | None = None


@dataclass(slots=True)
class RunningSequence:
    """One sequence of a request and what happened to it.

    Attributes:
        index: as in `CompletionDelta`.
        spec: what the backend was asked for.
        text: its state of detokenisation.
        deadline: when it has to be over, by the pipeline's clock.
        started: handed to the backend, which gives its room back.
        delivered: tokens so far.
        last_token_at: when the latest of them left.
        cached_tokens: prompt tokens found in a prefix cache.
        speculation: what became of tokens proposed to it, as last told.
        finish_reason: set when it has finished.
        phases: where the time on the workers went, as last told.
        told_at: when that was.
    """

    index: int
    spec: GenerationSpec
    text: SequenceText
    deadline: float
    started: bool = False
    delivered: int = 0
    last_token_at: float = 0.0
    cached_tokens: int = 0
    speculation: SpeculationAccount | None = None
    finish_reason: FinishReason | None = None
    phases: tuple[PhaseTime, ...] = ()
    told_at: float = 0.0

    def phases_until(self, now: float) -> tuple[PhaseTime, ...]:
        """Where the time on the workers went; the phase told of last has gone on since."""
        return prolonged(self.phases, now - self.told_at)


@dataclass
class Generation:
    """An admitted request; iterate over it once for its deltas.

    Attributes:
        model: name of the served model.
        prompts: tokens of each prompt.
        completions_per_prompt: completion i belongs to prompt i // completions_per_prompt.
    """

    model: str
    prompts: tuple[tuple[int, ...], ...]
    completions_per_prompt: int
    _sequences: Sequence[RunningSequence]
    _deltas: AsyncGenerator[CompletionDelta, None]
    _milestones: Milestones
    _metrics: GatewayMetrics
    _clock: Callable[[], float]
    _ended: float = 0.0
    _last_phases: tuple[PhaseTime, ...] = ()
    _error: Exception | None = field(default=None, repr=False)

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> CompletionDelta:
        try:
            delta = await anext(self._deltas)
        except StopAsyncIteration:
            raise
        except Exception as error:  # whatever it is, the books have to say so
            self._error = error
            raise
        self._account(self._sequences[delta.index], delta)
        return delta

    @property
    def size(self) -> int:
        """Number of completions."""
        return len(self._sequences)

    @property
    def finished(self) -> bool:
        """Whether every completion has had its last delta."""
        return all(sequence.finish_reason is not None for sequence in self._sequences)

    @property
    def delivered(self) -> bool:
        """Whether a token has been handed out."""
        return any(sequence.delivered for sequence in self._sequences)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        firsts = self._sequences[:: self.completions_per_prompt]
        return Usage(
            prompt_tokens=sum(len(prompt) for prompt in self.prompts),
            completion_tokens=sum(sequence.delivered for sequence in self._sequences),
            cached_tokens=sum(sequence.cached_tokens for sequence in firsts),
            speculation=together(sequence.speculation for sequence in self._sequences),
        )

    @property
    def timeline(self) -> Timeline:
        """Where the time went, up to the last token of the completion that ended last."""
        return timeline(self._milestones, self._last_phases, self._ended)

    def settle(self) -> None:
        """Count how every sequence ended; called once, when the request is over."""
        now = self._clock()
        for sequence in self._sequences:
            if sequence.finish_reason is not None:
                continue  # counted when it finished
            phases = sequence.phases_until(now)
            if self._error is None:
                self._metrics.ended(FinishReason.ABORT, now - self._milestones.received, phases)
            elif isinstance(self._error, TwinflowError):
                self._metrics.failed(self._error.code, phases)
            else:
                self._metrics.failed(TwinflowError.code, phases)

    def _account(self, sequence: RunningSequence, delta: CompletionDelta) -> None:
        now = self._clock()
        age = now - self._milestones.received
        if delta.token_ids:
            if sequence.delivered:
                self._metrics.inter_token(now - sequence.last_token_at, len(delta.token_ids))
            else:
                self._metrics.first_token(age)
            self._metrics.delivered(len(delta.token_ids))
            sequence.delivered += len(delta.token_ids)
            sequence.last_token_at = now
        sequence.cached_tokens = max(sequence.cached_tokens, delta.cached_tokens)
        sequence.speculation = delta.speculation or sequence.speculation
        if delta.phases:
            sequence.phases, sequence.told_at = delta.phases, now
        if delta.finish_reason is not None:
            sequence.finish_reason = delta.finish_reason
            self._ended, self._last_phases = now, sequence.phases_until(now)
            self._metrics.ended(delta.finish_reason, age, self._last_phases)


async def collect(generation: Generation) -> tuple[CompletionOutput, ...]:
    """Run a request to its end.

    Returns:
        Its completions, by index.

    Raises:
        ServerError: a sequence was lost.
    """
    parts: list[list[CompletionDelta]] = [[] for _ in range(generation.size)]
    async for delta in generation:
        parts[delta.index].append(delta)
    return tuple(_joined(deltas) for deltas in parts)


def _joined(deltas: list[CompletionDelta]) -> CompletionOutput:
    last = deltas[-1]
    return CompletionOutput(
        index=last.index,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        finish_reason=last.finish_reason or FinishReason.ABORT,
        stop_reason=last.stop_reason,
    )
