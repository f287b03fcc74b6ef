"""The bounded queue in front of the workers.

Counts what was admitted and has not produced its first token yet. A request that does not fit is
refused at once, whole: n completions are admitted together or not at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from twinflow.cluster.dispatch.backlog import Backlog
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
        retry_after_s: what a refused client is told to wait.
    """

    max_requests: int = 1024
    max_tokens: int = 4_000_000
    max_bytes: int = 256 * 1024 * 1024
    max_key_requests: int | None = None
    max_key_tokens: int | None = None
    retry_after_s: float = 1.0


class AdmissionQueue:
    """Counts sequences in and out.

    Attributes:
        waiting: the sequences that are admitted and have no first token yet.
    """

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self.waiting = Backlog()
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
        for spec in specs:
            self.waiting.add(spec.request_id, len(spec.prompt_token_ids))
            key = self._keys.setdefault(spec.api_key_id, Backlog())
            key.add(spec.request_id, len(spec.prompt_token_ids))

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

    def leave(self, spec: GenerationSpec) -> None:
        """The sequence has its first token, or is over; leaving twice is fine."""
        self.waiting.remove(spec.request_id)
        own = self._keys.get(spec.api_key_id)
        if own is not None:
            own.remove(spec.request_id)
            if not len(own):
                del self._keys[spec.api_key_id]
