"""Counts which experts were asked for, and what their weights weigh.

Kept where the rows are, one row of counters for each layer with experts; nothing is computed
before someone asks. Only routed experts are counted: shared ones are always loaded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerTraffic:
    """What the experts of one layer did since the counters were last taken.

    Attributes:
        layer: index of the layer.
        rows: routed rows of each expert; a row counts once for each of its experts.
        experts: distinct experts that any row was sent to, on whatever rank.
        loaded_bytes: bytes of weights of such experts that this rank read. An expert is read once
            in each pass of rows through the layer, so twice if two passes needed it.
    """

    layer: int
    rows: tuple[int, ...]
    experts: int
    loaded_bytes: int


class ExpertTraffic:
    """Counters of all layers with experts, on one rank.

    Args:
        layers: indices of these layers.
        num_experts: of a layer.
        device: where rows are routed.
    """

    def __init__(self, layers: tuple[int, ...], num_experts: int, device: torch.device) -> None:
        self._places = {layer: place for place, layer in enumerate(layers)}
        shape = (len(layers), num_experts)
        self._rows = torch.zeros(shape, dtype=torch.int64, device=device)
        self._loads = torch.zeros(shape, dtype=torch.int64, device=device)
        self._expert_bytes = torch.zeros(shape, dtype=torch.int64, device=device)

    def declare(self, layer: int, first_expert: int, expert_bytes: list[int]) -> None:
        """State the bytes of the experts of this rank, from `first_expert` on; others weigh 0."""
        end = first_expert + len(expert_bytes)
        bytes_on_device = torch.tensor(expert_bytes, device=self._expert_bytes.device)
        self._expert_bytes[self._places[layer], first_expert:end] = bytes_on_device

    def note(self, layer: int, counts: Tensor) -> None:
        """Count one pass through a layer; `counts` is int64 [num_experts], rows of each expert."""
        place = self._places[layer]
        self._rows[place] += counts
        self._loads[place] += counts > 0

    def take(self) -> list[LayerTraffic]:
        """What was counted since the last call, by layer; the counters start again at zero."""
        loaded = (self._loads * self._expert_bytes).sum(dim=1).tolist()
        distinct = (self._loads > 0).sum(dim=1).tolist()
        rows = self._rows.tolist()
        self._rows.zero_()
        self._loads.zero_()
        return [
            LayerTraffic(layer, tuple(rows[place]), distinct[place], loaded[place])
            for layer, place in self._places.items()
        ]
