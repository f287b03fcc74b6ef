"""How much memory must be left when a request comes in."""

from collections.abc import Sequence
from typing import Protocol

from twinflow.runtime.request import Request
from twinflow.runtime.schedulers.base import BlockView, SchedulerState


class Admission(Protocol):
    """Decides how far ahead admission looks; a pure function.

    A request comes in if the blocks of its whole prompt are idle, and besides as many as this says.
    """

    def reserve(self, state: SchedulerState, holders: Sequence[Request], candidate: Request) -> int:
        """Blocks that have to stay idle when a request comes in.

        Args:
            state: at the start of the step.
            holders: those that hold blocks and can grow, or have been let in for this step. Not
                asked if nobody holds any: whoever is alone comes in if its prompt fits.
            candidate: who wants to come in.
        """
        ...


def growth(request: Request, num_tokens: int, blocks: BlockView) -> int:
    """Blocks that a sequence lacks until it has so many tokens; its prompt counts as held."""
    held = max(blocks.num_held(request.request_id), blocks.blocks_for(request.num_tokens))
    return max(blocks.blocks_for(num_tokens) - held, 0)
