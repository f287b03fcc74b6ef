"""The bounded queue in front of the workers.

Counts what was admitted and has not produced its first token yet. A request that does not fit, or
whose first token would come too late, is refused at once, whole: n completions are admitted
together or not at all.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twinflow.cluster.dispatch.backlog import Backlog
from twinflow.cluster.dispatch.forecast import Forecast, Wait
from twinflow.cluster.gateway.backend import GenerationSpec
from twinflow.protos.errors import Overloaded

# Token ids, parameters and bookkeeping of a queued sequence, roughly.
_BYTES_PER_TOKEN = 8
_BYTES_PER_SEQUENCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """Bounds on what waits.

    Attributes:
        max_requests: sequences without a first token.
        max_tokens: their prompt tokens.
        max_bytes: memory they take in the gateway, as estimated.
        max_key_requests: sequences of one API key without a first token; None for no such bound.
        max_key_tokens: their prompt tokens; likewise.
        retry_after_s: what a refused client is told to wait, at least.
        longest_wait_s: longest time to a first token that is promised: who would wait longer, at
            the pace of the latest ones, is refused; None promises none beyond the deadline.
        turns: API keys take turns, so that what one of them has waiting is in front of another
            one's no further than that has itself.
    """

    max_requests: int = 1024
    max_tokens: int = 4_000_000
    max_bytes: int = 256 * 1024 * 1024
    max_key_requests: int | None = None
    max_key_tokens: int | None = None
    retry_after_s: float = 1.0
    longest_wait_s: float | None = None
    turns: bool = False


class AdmissionQueue:
    """Counts sequences in and out.

    Args:
        limits: bounds.
        clock: seconds, monotonic.

    Attributes:
        waiting: the sequences that are admitted and have no first token yet.
        forecast: how long they wait.
    """

    def __init__(
        self, limits: AdmissionLimits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._clock = clock
        self.waiting = Backlog()
        self.forecast = Forecast(limits.longest_wait_s)
        self._waits: dict[str, Wait] = {}
        self._keys: dict[str, Backlog] = {}

    @property
    def num_requests(self) -> int:
        """Sequences that are admitted and have no first token yet."""
        return len(self.waiting)

    @property
    def num_tokens(self) -> int:
        """Their prompt tokens."""
        return self.waiting.num_tokens

    def admit(self, specs: Sequence[GenerationSpec]) -> None:
        """Count all sequences of a request in.

        Raises:
            Overloaded: one of the bounds would be passed; nothing was counted.
        """
        self._check_key(specs)
        limits = self._limits
        requests = self.num_requests + len(specs)
        tokens = self.num_tokens + sum(len(spec.prompt_token_ids) for spec in specs)
        size = requests * _BYTES_PER_SEQUENCE + tokens * _BYTES_PER_TOKEN
        for name, value, limit in (
            ("requests", requests, limits.max_requests),
            ("prompt tokens", tokens, limits.max_tokens),
            ("bytes", size, limits.max_bytes),
        ):
            if value > limit:
                raise Overloaded(
                    f"The queue is full ({limit} {name}); try again later.",
                    retry_after_s=limits.retry_after_s,
                )
        ahead, limit_s = self._check_wait(specs)
        for spec in specs:
            own = len(spec.prompt_token_ids)
            self._waits[spec.request_id] = Wait(self._clock(), ahead, own, limit_s)
            self.waiting.add(spec.request_id, own)
            key = self._keys.setdefault(spec.api_key_id, Backlog())
            key.add(spec.request_id, own)

    def _check_key(self, specs: Sequence[GenerationSpec]) -> None:
        """Refuse what one API key would have too much of; all sequences of a request are one's."""
        own = self._keys.get(specs[0].api_key_id, Backlog()) if specs else Backlog()
        tokens = own.num_tokens + sum(len(spec.prompt_token_ids) for spec in specs)
        for name, value, limit in (
            ("requests", len(own) + len(specs), self._limits.max_key_requests),
            ("prompt tokens", tokens, self._limits.max_key_tokens),
        ):
            if limit is not None and value > limit:
                raise Overloaded(
                    f"Too much of this API key waits ({limit} {name}); try again later.",
                    retry_after_s=self._limits.retry_after_s,
                )

    def _check_wait(self, specs: Sequence[GenerationSpec]) -> tuple[int, float]:
        """Refuse what would wait too long; returns what is ahead, and how long it may take.

        Whoever would be alone is admitted in any case: else a pace that is too low would stay so.
        """
        ahead = self._ahead(specs)
        limit_s = self.forecast.limit_s(min((spec.deadline_s for spec in specs), default=0.0))
        excess_s = self.forecast.excess_s(ahead, limit_s)
        if self.num_requests and excess_s > 0.0:
            raise Overloaded(
                f"The first token would come later than it may ({limit_s:g} s), at the pace of the "
                "latest requests; try again later.",
                retry_after_s=max(self._limits.retry_after_s, excess_s),
            )
        return ahead, limit_s

    def _ahead(self, specs: Sequence[GenerationSpec]) -> int:
        """Prompt tokens that wait in front of the end of a request, its own included."""
        new = sum(len(spec.prompt_token_ids) for spec in specs)
        if not self._limits.turns or not specs:
            return self.num_tokens + new
        mine = specs[0].api_key_id
        own = new + (self._keys[mine].num_tokens if mine in self._keys else 0)
        others = (backlog.num_tokens for key, backlog in self._keys.items() if key != mine)
        return own + sum(min(own, tokens) for tokens in others)

    def answered(self, spec: GenerationSpec) -> None:
        """The sequence has a token; only the first one counts."""
        wait = self._waits.get(spec.request_id)
        if wait is not None:
            self.forecast.observe(wait, self._clock())
            self.leave(spec)

    def leave(self, spec: GenerationSpec) -> None:
        """The sequence is over, or waits no longer; leaving twice is fine."""
        self._waits.pop(spec.request_id, None)
        self.waiting.remove(spec.request_id)
        own = self._keys.get(spec.api_key_id)
        if own is not None:
            own.remove(spec.request_id)
            if not len(own):
                del self._keys[spec.api_key_id]
