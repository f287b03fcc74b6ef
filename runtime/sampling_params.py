"""How the tokens of a request are chosen and when it ends.

Values and their bounds only: nothing here looks at logits or text.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from twinflow.protos.errors import InvalidRequest

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
MAX_STOP_TOKENS = 128
MAX_LOGIT_BIAS = 1024
MAX_COMPLETIONS = 128
# Below this a temperature is read as "greedy": dividing by it would overflow fp32 logits.
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling and stopping parameters of a request; names and meanings are vLLM's.

    Attributes:
        n: independent completions of the prompt; completion i of seed s is what a request with
            n = 1 and `completion_seed(s, i)` produces.
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of tokens whose probabilities add up to top_p.
        min_p: keep tokens at least min_p times as likely as the most likely one.
        presence_penalty: subtracted once from the logit of every token already generated.
        frequency_penalty: subtracted for every time a token was generated.
        repetition_penalty: divides positive and multiplies negative logits of tokens that
            appeared in the prompt or the output.
        logit_bias: added to the logits of these tokens.
        seed: None lets the server pick one.
        max_tokens: None means up to the end of the context.
        min_tokens: no end-of-sequence, stop token or stop string before this many tokens.
        stop: strings that end the output.
        stop_token_ids: tokens that end the output.
        ignore_eos: do not end at the end-of-sequence token.
        include_stop_str_in_output: keep the stop string at the end of the text.
        logprobs: None for none; k for the sampled token's and the k most likely ones'.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        check_range("n", self.n, 1, MAX_COMPLETIONS)
        check_range("temperature", self.temperature, 0.0, 2.0)
        check_range("top_k", self.top_k, -1, 2**31 - 1)
        check_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        check_range("min_p", self.min_p, 0.0, 1.0)
        check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        check_range("repetition_penalty", self.repetition_penalty, 0.0, 2.0, open_low=True)
        if self.seed is not None:
            check_range("seed", self.seed, 0, 2**64 - 1)
        if self.max_tokens is not None:
            check_range("max_tokens", self.max_tokens, 1, 2**31 - 1)
        check_range("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens}).",
                "min_tokens",
            )
        if self.logprobs is not None:
            check_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        self._check_stop()
        self._check_logit_bias()

    def _check_stop(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(f"stop takes at most {MAX_STOP_STRINGS} strings.", "stop")
        if any(not 0 < len(stop) <= MAX_STOP_LENGTH for stop in self.stop):
            raise InvalidRequest(
                f"A stop string has between 1 and {MAX_STOP_LENGTH} characters.", "stop"
            )
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            raise InvalidRequest(
                f"stop_token_ids takes at most {MAX_STOP_TOKENS} tokens.", "stop_token_ids"
            )

    def _check_logit_bias(self) -> None:
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequest(f"logit_bias takes at most {MAX_LOGIT_BIAS} tokens.", "logit_bias")
        for value in self.logit_bias.values():
            check_range("logit_bias", value, -100.0, 100.0)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < MIN_TEMPERATURE

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise InvalidRequest if a parameter names a token outside [0, vocab_size)."""
        for name, ids in (("stop_token_ids", self.stop_token_ids), ("logit_bias", self.logit_bias)):
            if any(not 0 <= token < vocab_size for token in ids):
                raise InvalidRequest(
                    f"{name} names a token outside the vocabulary of {vocab_size}.", name
                )


def check_range(
    name: str, value: float, low: float, high: float, *, open_low: bool = False
) -> None:
    """Raise InvalidRequest unless low <= value <= high (low < value if `open_low`); NaN fails."""
    if math.isfinite(value) and low <= value <= high and not (open_low and value == low):
        return
    bounds = f"{'above' if open_low else 'at least'} {low} and at most {high}"
    raise InvalidRequest(f"{name} must be {bounds}.", name)


def completion_seed(seed: int, index: int) -> int:
    """Seed of completion `index` of a request: the request's own seed for index 0.

    SplitMix64's increment keeps the seeds of different completions apart.
    """
    return (seed + index * 0x9E3779B97F4A7C15) % 2**64
