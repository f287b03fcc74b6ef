"""What the experts of a layer were asked for. Figures only; counted in `models.expert_traffic`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LayerTraffic:
    """What the experts of one layer did since the counters were last taken.

    Attributes:
        layer: index of the layer.
        rows: rows that were sent to each expert; a row counts once for each of its experts.
        distinct: experts that any row was sent to, on whatever rank.
        loaded_bytes: bytes of weights that this rank read for them, in the dtype of the model. An
            expert is read once in each pass of rows through the layer that needs it.
    """

    layer: int
    rows: tuple[int, ...]
    distinct: int
    loaded_bytes: int
