"""One of the parts that a page of KV consists of (see `kv_layout`). Does not load torch."""

from dataclasses import dataclass

ROPE_PART = "rope"


@dataclass(frozen=True, slots=True)
class KVPart:
    """Planes of a page that stay together.

    Attributes:
        name: what it is of the whole model's KV; unique in a layout.
        planes: planes of each layer.
        width: elements of a token in a plane.
    """

    name: str
    planes: int
    width: int
