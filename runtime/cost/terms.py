"""A step's time as a sum of amounts and prices: what a fit needs to see of the formula.

The same formula as `CostModel.seconds`, taken apart: amounts that are always paid, duels of
arithmetic and traffic of which the dearer one is paid, and the stairs of matrices. A test holds the
two together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.cost.model import Prices
from twinflow.runtime.cost.shape import ModelShape

FIXED = ("step", "sample")
COMPUTE = ("row", "prefill_pair")
MEMORY = ("prefill_kv", "decode_kv")


@dataclass(frozen=True, slots=True)
class Duel:
    """Arithmetic and traffic of one kind of matrix in one segment.

    Attributes:
        kind: `dense` or `expert`; its prices are `KIND_flop` and `KIND_byte`.
        flops: operations.
        bytes: read.
    """

    kind: str
    flops: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Terms:
    """What a step pays for.

    Attributes:
        amounts: by the name of the price: those of FIXED, COMPUTE and MEMORY.
        duels: of which the dearer side is paid.
        tread: numbers of rows, and the operations of one row in the matrices that all these rows
            use; each pays for the stair of its number.
    """

    amounts: dict[str, float]
    duels: tuple[Duel, ...]
    tread: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, shape: ModelShape, load: StepLoad) -> "Terms":
        """Take a step apart."""
        amounts = {"step": 1.0, "sample": float(load.sampled)}
        amounts |= dict.fromkeys((*COMPUTE, *MEMORY), 0.0)
        for segment in load.segments:
            layers, prefill = segment.layers, segment.prefill
            amounts["row"] += layers * segment.rows
            amounts["prefill_pair"] += layers * prefill.pairs * shape.pair_flops
            amounts["prefill_kv"] += layers * prefill.context * shape.kv_bytes
            amounts["decode_kv"] += layers * segment.decode.context * shape.kv_bytes
        return cls(amounts, tuple(_duels(shape, load)), tuple(_tread(shape, load)))

    def compute_seconds(self, prices: Prices) -> float:
        """Arithmetic outside the duels, on the whole device."""
        stairs = sum(prices.stair(rows) * flops for rows, flops in self.tread)
        return self._paid(COMPUTE, prices) + stairs

    def memory_seconds(self, prices: Prices) -> float:
        """Traffic outside the duels, on the whole device."""
        return self._paid(MEMORY, prices)

    def fixed_seconds(self, prices: Prices) -> float:
        """What no share of the device changes."""
        return self._paid(FIXED, prices)

    def flops_from(self, rows: int) -> float:
        """Operations of one row in matrices that at least so many rows use."""
        return sum(flops for used_by, flops in self.tread if used_by >= rows)

    def _paid(self, names: tuple[str, ...], prices: Prices) -> float:
        return sum(float(getattr(prices, name)) * self.amounts[name] for name in names)


def _duels(shape: ModelShape, load: StepLoad) -> Iterator[Duel]:
    for segment in load.segments:
        layers, rows = segment.layers, segment.rows
        padded = shape.padded(rows)
        yield Duel("dense", layers * shape.dense_flops * padded, layers * shape.dense_bytes)
        if shape.num_experts:
            read = layers * shape.expert_bytes * shape.experts_hit(rows)
            yield Duel("expert", layers * shape.expert_flops * rows, read)
    if load.sampled:
        yield Duel("dense", shape.head_flops * shape.padded(load.sampled), shape.head_bytes)


def _tread(shape: ModelShape, load: StepLoad) -> Iterator[tuple[int, float]]:
    for segment in load.segments:
        yield shape.padded(segment.rows), segment.layers * shape.dense_flops
    if load.sampled:
        yield shape.padded(load.sampled), shape.head_flops
