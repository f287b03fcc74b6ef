"""What decisions about pools' sizes are made from. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass

from twinflow.workers.role import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSignals:
    """The load of a pool, on average: over a window, or the latest seconds of it.

    Attributes:
        serving: workers that serve in it now.
        busy: workers that computed, over the window.
        queue_s: what a single worker would need for the prompts that waited in it lately.
        held: KV caches or batches, the fuller of the two, that were in use over the window.
        running: sequences in its batches lately.
        receiving: sequences that had room in it lately, and whose prompts other workers computed.
        waiting: sequences that waited for room in it lately.
        waited: the same over the window.
    """

    serving: int
    busy: float = 0.0
    queue_s: float = 0.0
    held: float = 0.0
    running: float = 0.0
    receiving: float = 0.0
    waiting: float = 0.0
    waited: float = 0.0

    def late_share(self, late: float) -> float:
        """The part of its sequences that are there because their prompts are late.

        Args:
            late: the part of those whose prompts other workers compute.
        """
        return late * self.receiving / max(self.running + self.receiving, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """What is known of a deployment at a moment.

    Attributes:
        pools: those that have workers.
        ttft_s: quantile of the times to first tokens in the window; None if there were none.
        tpot_s: quantile of the times per further token.
        starts_per_s: first tokens in the window, for each second of it.
        places: workers that fit, those of all pools together; None for no bound.
    """

    pools: Mapping[Role, PoolSignals]
    ttft_s: float | None = None
    tpot_s: float | None = None
    starts_per_s: float = 0.0
    places: int | None = None
