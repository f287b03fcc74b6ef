"""What an operator may choose about layer-parallel drafting: `layer_parallel` of the JSON, checked.

Knows names and bounds; whether a model and its ranks allow a choice is found where they are loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from twinflow.runtime.nearest import did_you_mean

AUTO: Literal["auto"] = "auto"
MAX_SIZE = 16

Layout = Literal["single", "fused_tp", "owner"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParallelConfig:
    """How the layers of a drafter are computed.

    Attributes:
        size: layers whose attention is computed side by side, at most; 1 for one after the other,
            `auto` for what is measured to pay best.
        first: layers at the beginning that are computed one after the other.
        last: likewise at the end.
        plan: `uniform` groups, or groups of any size up to `size` that have the least error, as
            measured at start, for as many groups.
        layout: `single` drafts on rank 0, `fused_tp` cuts every layer for the drafting ranks,
            `owner` gives whole attention sub-layers to single ranks; `auto` measures.
        mlp: with `owner`: MLPs and vocabulary cut for the ranks (`tp`) or whole on each.
        calibrate: compute what a sequence has gained again in the exact order of layers before
            each proposal. Without it KV of proposed tokens is kept as it was approximated.
    """

    size: int | Literal["auto"] = 4
    first: int = 1
    last: int = 1
    plan: Literal["uniform", "measured"] = "uniform"
    layout: Layout | Literal["auto"] = AUTO
    mlp: Literal["tp", "replicated"] = "tp"
    calibrate: bool = True

    def __post_init__(self) -> None:
        if self.size != AUTO and not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"layer_parallel.size must be auto or in 1..{MAX_SIZE}")
        for name in ("first", "last"):
            if getattr(self, name) < 0:
                raise ValueError(f"layer_parallel.{name} must be at least 0")
        if self.plan == "measured" and self.size == AUTO:
            raise ValueError(
                "layer_parallel.plan measured needs a number as layer_parallel.size: the number "
                "of groups follows from it"
            )


def check_keys(given: object) -> None:
    """Refuse what is no object with keys of `LayerParallelConfig`.

    Raises:
        ValueError: likewise.
    """
    if not isinstance(given, Mapping):
        raise ValueError('layer_parallel must be a JSON object, such as {"size": 4}')
    known = [field.name for field in fields(LayerParallelConfig)]
    for key in given:
        if key not in known:
            raise ValueError(f"layer_parallel.{key} is unknown{did_you_mean(str(key), known)}")
