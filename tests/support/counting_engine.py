"""An engine for races that counts: each token is the one before plus a step.

Run as a module it is a contestant's process. The variant says how it behaves: `steps` counts,
`silent` never gets ready, `broken` dies of its first order.
"""

import time
from collections.abc import Sequence

from benchmarks.peers.engines.protocol import Settings, Tokens, serve


class CountingEngine:
    """See the module."""

    version = "1.2"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        if settings.variant == "silent":
            time.sleep(60)
        # Engines print what they like: it must not be taken for an answer.
        print("ready, they say")  # noqa: T201

    def generate(self, prompts: Sequence[Tokens], count: int) -> list[Tokens]:
        """Continue each prompt by counting on from its last token."""
        if self._settings.variant == "broken":
            raise SystemExit("no more numbers")
        return [[prompt[-1] + 1 + number for number in range(count)] for prompt in prompts]


if __name__ == "__main__":
    serve(CountingEngine)
