"""Lets sequences through to the workers in turns that are fair to API keys.

Workers answer first come, first served; so that turns mean anything, only so many prompt tokens may
be with them without a first token, and the others wait here. What has its first token is no longer
counted. A sequence whose deadline passes while it waits costs no worker anything.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from twinflow.cluster.dispatch.fairness import FairQueue
from twinflow.cluster.gateway.backend import GenerationSpec
from twinflow.protos.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class TurnstileConfig:
    """What is let through.

    Attributes:
        max_tokens: prompt tokens that may be with workers without a first token; a longer prompt
            goes alone. None lets everything through at once.
    """

    max_tokens: int | None = None


class Turnstile:
    """Where sequences wait for their turn.

    Attributes:
        queue: what waits, and what keys were served.
    """

    def __init__(self, config: TurnstileConfig) -> None:
        self._config = config
        self.queue = FairQueue()
        self._calls: dict[str, asyncio.Future[None]] = {}
        self._through: dict[str, int] = {}

    @property
    def tokens(self) -> int:
        """Prompt tokens that are with workers without a first token."""
        return sum(self._through.values())

    async def enter(self, spec: GenerationSpec, timeout_s: float) -> None:
        """Wait for a sequence's turn.

        Raises:
            DeadlineExceeded: it did not come in time.
        """
        if self._config.max_tokens is None:
            return
        name, call = spec.request_id, asyncio.get_running_loop().create_future()
        self._calls[name] = call
        self.queue.add(name, spec.api_key_id, len(spec.prompt_token_ids), spec.priority)
        self._let_through()
        try:
            async with asyncio.timeout(timeout_s):
                await call
        except BaseException as error:  # cancelled, or late: it must not be let through any more
            self.leave(spec)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    "The request's deadline passed before it was its turn."
                ) from None
            raise

    def leave(self, spec: GenerationSpec) -> None:
        """A sequence has its first token, or is over; leaving twice is fine."""
        name = spec.request_id
        self.queue.withdraw(name)
        self._calls.pop(name, None)
        if self._through.pop(name, None) is not None:
            self._let_through()

    def generated(self, spec: GenerationSpec, tokens: int) -> None:
        """A sequence has got tokens, for which its key pays."""
        self.queue.generated(spec.api_key_id, tokens)

    def check_integrity(self, live: Collection[str]) -> None:
        """Raise AssertionError if a sequence that is over waits, or is counted as let through."""
        self.queue.check_integrity()
        if stray := sorted({*self._calls, *self._through} - set(live)):
            raise AssertionError(f"sequences are over and still have a turn: {stray}")

    def _let_through(self) -> None:
        room = self._config.max_tokens or 0
        while (turn := self.queue.next()) is not None:
            if self._through and self.tokens + turn.prompt_tokens > room:
                return
            self.queue.take(turn)
            self._through[turn.name] = turn.prompt_tokens
            call = self._calls.pop(turn.name)
            if not call.done():
                call.set_result(None)
