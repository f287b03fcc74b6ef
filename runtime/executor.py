"""What an engine needs from the side that computes: rows in, sampled tokens out.

The engine holds no tensors and the executor holds no queues. `ModelExecutor` runs a model;
tests run fakes.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.outputs import SampledRun
from twinflow.runtime.request import Request
from twinflow.runtime.speculative.draft import NOTHING, Draft
from twinflow.runtime.speculative.drafters.base import Outlook
from twinflow.runtime.step_plan import RowGroup
from twinflow.runtime.tree_branches import TreeBranch

# Called with [first, end) when the KV of these layers is written for the rows of the step that
# cross layer `end - 1` in it.
LayersDone = Callable[[int, int], None]


class Work(msgspec.Struct, frozen=True):
    """One row group with what is needed to compute it.

    Attributes:
        request: whose rows.
        group: which rows.
        blocks: the request's block table, covering at least `group.token_end` tokens.
        draft: what was proposed, if rows of the group are of proposed tokens: so many.
        branches: where its nodes lie, if it branches; nothing for a chain.
    """

    request: Request
    group: RowGroup
    blocks: Sequence[int]
    draft: Draft = NOTHING
    branches: Sequence[TreeBranch] = ()

    @property
    def token_ids(self) -> Sequence[int]:
        """Tokens of the rows; of proposed ones in the order of their nodes."""
        group = self.group
        tokens = self.request.tokens(group.token_start, group.token_count - group.drafted)
        return (*tokens, *self.draft.tokens) if group.drafted else tokens


class Executor(Protocol):
    """Computes row groups and keeps the sampling state of the requests it was told of.

    `execute` and `take_traffic` may run on another thread than the rest.
    """

    def admit(self, request: Request) -> None:
        """Prepare sampling for a request, whose output so far is taken into account."""
        ...

    def accept(self, request_id: str, token_id: int) -> None:
        """A token was appended to the request."""
        ...

    def restart(self, request_id: str) -> None:
        """The request has lost its blocks: it is computed again from the first layer."""
        ...

    def forget(self, request_id: str) -> None:
        """The request is over."""
        ...

    def propose(self, requests: Sequence[Request], limits: Sequence[int]) -> Sequence[Draft]:
        """Guess what comes next in sequences that decode.

        Args:
            requests: whose next tokens are wanted.
            limits: most tokens for each, at least one.

        Returns:
            One proposal for each, perhaps an empty one, in order.
        """
        ...

    def outlook(self, requests: Sequence[Request], nodes: int) -> Outlook:
        """What proposals of so many nodes at most would take, for sequences that decode."""
        ...

    def execute(self, work: Sequence[Work], on_layers: LayersDone | None) -> Sequence[SampledRun]:
        """Compute all rows, sample where asked, and verify what was proposed.

        Returns:
            One result for each work whose group samples, in order: at least one token, and one
            more for each proposed token that was accepted.
        """
        ...

    def take_traffic(self) -> Sequence[LayerTraffic]:
        """What experts did since the last call, by layer; nothing without experts."""
        ...
