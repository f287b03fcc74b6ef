"""Counts which experts were asked for, and what their weights weigh.

Counted where the rows are routed, without waiting for the device; nothing is added up before
someone asks. Only routed experts are counted: shared ones are always loaded. Counters belong to who
runs the model, not to the model: two lanes that share its weights count apart.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinflow.runtime.layer_traffic import LayerTraffic


class ExpertCounter:
    """Counts for one layer. Every rank routes all rows, so that each of them counts the same.

    Args:
        layer: index of the layer.
        num_experts: routed experts of the layer.
        expert_bytes: bytes of weights of one of them, on whatever ranks they are.
        device: where rows are routed.

    Attributes:
        layer: see above.
        expert_bytes: see above.
        counts: int64 [2, experts]: rows of each expert, and passes that needed it.
    """

    def __init__(
        self, layer: int, num_experts: int, expert_bytes: int, device: torch.device
    ) -> None:
        self.layer = layer
        self.expert_bytes = expert_bytes
        self.counts = torch.zeros(2, num_experts, dtype=torch.int64, device=device)

    def note(self, rows: Tensor) -> None:
        """Count one pass; `rows` is int64 [experts], the rows of each expert."""
        self.counts[0] += rows
        self.counts[1] += rows > 0


class ExpertTraffic:
    """The counters of all layers with experts.

    Args:
        counters: one of each such layer; at least one.
    """

    def __init__(self, counters: Sequence[ExpertCounter]) -> None:
        self._counters = tuple(counters)
        self._by_layer = {counter.layer: counter for counter in counters}

    def counter(self, layer: int) -> ExpertCounter | None:
        """The counter of a layer; None if it has no experts."""
        return self._by_layer.get(layer)

    def take(self) -> tuple[LayerTraffic, ...]:
        """What was counted since the last call, by layer; the counters start again at zero."""
        counts = torch.stack([counter.counts for counter in self._counters]).tolist()
        for counter in self._counters:
            counter.counts.zero_()
        return tuple(map(_traffic, self._counters, counts))


def _traffic(counter: ExpertCounter, counts: list[list[int]]) -> LayerTraffic:
    rows, passes = counts
    return LayerTraffic(
        layer=counter.layer,
        rows=tuple(rows),
        distinct=sum(count > 0 for count in rows),
        loaded_bytes=sum(passes) * counter.expert_bytes,
    )
