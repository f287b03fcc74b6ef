"""Many decode steps as one event.

If nothing arrives, ends or runs out of blocks, every step decodes the same requests, and the time
of a step grows evenly with their contexts. Such steps are taken together, and cut short if
something arrives after all; the outcome is that of taking them one by one.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.request import Request


@dataclass(frozen=True, slots=True)
class Run:
    """Steps that follow each other without a pause.

    Attributes:
        start: when the first one begins.
        first: its duration.
        growth: by how much each one is longer than the one before.
        steps: how many.
    """

    start: float
    first: float
    growth: float
    steps: int

    def end(self, steps: int) -> float:
        """When so many steps are over."""
        return self.start + steps * self.first + self.growth * (steps * (steps - 1) / 2)

    def steps_until(self, time: float) -> int:
        """Steps after which something that happens at `time` is noticed; at least one."""
        return max(1, bisect_left(range(self.steps), time, key=self.end))

    def last(self, steps: int) -> float:
        """Duration of the last one of so many steps."""
        return self.first + (steps - 1) * self.growth


def steps_ahead(requests: Sequence[Request], blocks: BlockManager, max_model_len: int) -> int:
    """Steps until shortly before a request ends, or blocks might run out."""
    longest = min(min(_end(request), max_model_len) - request.num_tokens for request in requests)
    # What each request may lack within its last block is already held.
    room = blocks.num_idle // len(requests) * blocks.block_size
    return min(longest - 1, room)


def growth(requests: Sequence[Request], blocks: BlockManager, steps: int) -> int:
    """Blocks that so many decode steps of these requests take."""
    return sum(
        max(
            0, blocks.blocks_for(request.num_computed + steps) - blocks.num_held(request.request_id)
        )
        for request in requests
    )


def _end(request: Request) -> int:
    """Tokens with which a simulated request ends: see `Fleet`."""
    return len(request.prompt_token_ids) + request.params.min_tokens


def advance(requests: Sequence[Request], blocks: BlockManager, steps: int, end: float) -> None:
    """Leave requests and blocks as so many decode steps would.

    Args:
        requests: all of which decode.
        blocks: theirs.
        steps: how many.
        end: when the last one is over.
    """
    tokens = [0] * steps
    for request in requests:
        request.output_token_ids.extend(tokens)
        request.num_computed += steps
        request.last_token_at = end
        blocks.grow(request.request_id, request.num_computed)
        blocks.publish(request)
