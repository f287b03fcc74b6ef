"""What an engine needs from the side that computes: rows in, sampled tokens out.

The engine holds no tensors and the executor holds no queues. `ModelExecutor` runs a model;
tests run fakes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.outputs import NumericalFault, SampledToken
from twinflow.runtime.request import Request
from twinflow.runtime.step_plan import RowGroup

# Called with [first, end) when the KV of these layers is written for the rows of the step that
# cross layer `end - 1` in it.
LayersDone = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Work:
    """One row group with what is needed to compute it.

    Attributes:
        request: whose rows.
        group: which rows.
        blocks: the request's block table, covering at least `group.token_end` tokens.
    """

    request: Request
    group: RowGroup
    blocks: Sequence[int]


class Executor(Protocol):
    """Computes row groups and keeps the sampling state of the requests it was told of."""

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

    def execute(
        self, work: Sequence[Work], on_layers: LayersDone | None
    ) -> Sequence[SampledToken | NumericalFault]:
        """Compute all rows, sample where asked.

        Returns:
            One result for each work whose group samples, in order.
        """
        ...

    def take_traffic(self) -> Sequence[LayerTraffic]:
        """What experts did since the last call, by layer; nothing without experts."""
        ...
