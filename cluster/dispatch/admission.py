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
        retry_after_s: what a refused client is told to wait.
    """

    max_requests: int = 1024
    max_tokens: int = 4_000_000
    max_bytes: int = 256 * 1024 * 1024
    retry_after_s: float = 1.0


class AdmissionQueue:
    """Counts sequences in and out.

    Attributes:
        waiting: the sequences that are admitted and have no first token yet.
    """

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self.waiting = Backlog()

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

    def leave(self, spec: GenerationSpec) -> None:
        """The sequence has its first token, or is over; leaving twice is fine."""
        self.waiting.remove(spec.request_id)
