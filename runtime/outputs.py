"""What comes out: a sampled token, token deltas on the way, completions at the end."""

from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from twinflow.runtime.speculative.account import SpeculationAccount


class FinishReason(StrEnum):
    """Why a completion ended; the values are OpenAI's."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log probabilities at one position, from the model's unmodified distribution.

    Attributes:
        token_id: the sampled token.
        logprob: its log probability.
        top: (token, log probability) of the most likely tokens, most likely first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class SampledToken(msgspec.Struct, frozen=True):
    """The next token of a sequence.

    Attributes:
        token_id: the token.
        logprobs: of the unmodified distribution, if the sequence asked for them.
    """

    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class NumericalFault:
    """Logits that are not numbers: their sequence has to fail, its neighbours need not.

    Attributes:
        position: absolute position of the token that could not be chosen.
    """

    position: int

    def __str__(self) -> str:
        return f"the logits at position {self.position} are not finite numbers"


# What the rows of a request yield in a step: its next token and, if tokens were proposed, those
# that come behind it.
SampledRun = tuple[SampledToken, ...] | NumericalFault


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """A stretch of a request's life.

    Attributes:
        name: what happened, such as `queue` or `prefill`.
        seconds: how long it took.
    """

    name: str
    seconds: float


class TokenDelta(msgspec.Struct, frozen=True):
    """New tokens of one sequence since the last delta.

    Attributes:
        token_ids: the new tokens, in order; may be empty in the last delta.
        logprobs: one entry per token, or empty when they were not asked for.
        finish_reason: set in the last delta.
        stop_token_id: the stop token that ended the sequence; not part of `token_ids`' text.
        cached_tokens: prompt tokens found in a prefix cache; meaningful in the first delta.
        phases: where the time on the workers went so far; in the first delta, in later ones if a
            phase has ended since, and in the last one. The last phase goes on.
        speculation: what became of tokens proposed to the sequence so far; None if none were.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    cached_tokens: int = 0
    phases: tuple[PhaseTime, ...] = ()
    speculation: SpeculationAccount | None = None


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One finished completion.

    Attributes:
        index: its number among the n completions of the request.
        text: detokenised output, cut at the stop string.
        token_ids: every generated token, the one that ended the output included.
        logprobs: one entry per token, or empty.
        finish_reason: why it ended.
        stop_reason: the stop string or stop token that ended it; None for the
            end-of-sequence token.
        speculation: what became of tokens proposed to it; None if none were.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    speculation: SpeculationAccount | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A finished request, as `LLM.generate` returns it.

    Attributes:
        request_id: made by twinflow.
        prompt: the prompt's text, or None if it was given as token ids.
        prompt_token_ids: what the model was fed.
        outputs: n completions, by index.
        cached_tokens: prompt tokens found in the prefix cache.
        phases: where the time went, if that was asked for.
        speculation: what became of tokens proposed to all completions; None if none were.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    cached_tokens: int = 0
    phases: tuple[PhaseTime, ...] = ()
    speculation: SpeculationAccount | None = field(default=None, compare=False)
