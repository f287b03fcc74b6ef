"""What the experts of a layer were asked for. Figures only; counted in `models.expert_traffic`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerTraffic:
    """What the experts of one layer did since the counters were last taken.

    Attributes:
        layer: index of the layer.
        rows: rows that were sent to each expert; a row counts once for each of its experts.
        distinct: experts that any row was sent to, on whatever rank.
        loaded_bytes: bytes of weights that were read for them, in the dtype of the model, by all
            ranks together. An expert is read once in each pass of rows through the layer that needs
            it.
    """

    layer: int
    rows: tuple[int, ...]
    distinct: int
    loaded_bytes: int


@dataclass(frozen=True, slots=True)
class LayerTotals:
    """The traffic of one layer, added up over steps.

    Attributes:
        steps: steps in which rows went through the layer's experts.
        distinct: experts that such a step needed, added up; by `steps`, how many one needs.
        loaded_bytes: see `LayerTraffic`.
    """

    steps: int = 0
    distinct: int = 0
    loaded_bytes: int = 0

    def plus(self, traffic: LayerTraffic) -> "LayerTotals":
        """With another step; one without rows for this layer is none."""
        return LayerTotals(
            self.steps + (traffic.distinct > 0),
            self.distinct + traffic.distinct,
            self.loaded_bytes + traffic.loaded_bytes,
        )
