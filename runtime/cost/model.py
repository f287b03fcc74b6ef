"""Predicts how long a step takes: a closed form over the model's arithmetic.

    T(step, share) = constant + rows sampled + sum over segments of layers * (
          max(dense arithmetic, dense weights read)  + max(expert arithmetic, experts read)
        + stair of the dense matrices
        + attention of prefill rows + attention of decode rows + work of each row )
        + max(head arithmetic, head read) + stair of the head

The larger of arithmetic and traffic of each kind of matrix counts (Nexus, arXiv 2507.06608,
section 4); a segment's matrices are read once, however many rows cross it. For a few rows the time
of a matrix product is no line but a staircase, because kernels compute rows in tiles: what so many
rows cost beyond the line is a price of its own for each number of rows. Arithmetic is divided
by the share's speed on one curve, traffic by that on another; the constant and the sampling are
the host's and know no share. Where the prices come from is not known here: they are fitted to
measured steps (`twinflow.runtime.cost.fit`) or come from a description of a device
(`twinflow.runtime.cost.devices`).
"""

from dataclasses import dataclass, field
from itertools import pairwise

from twinflow.runtime.cost.base import SegmentLoad, StepLoad
from twinflow.runtime.cost.contention import Contention
from twinflow.runtime.cost.curve import SpeedCurve
from twinflow.runtime.cost.shape import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Seconds on a whole device; none below 0.

    Attributes:
        step: of every step, whatever is in it.
        sample: of a row whose next token is chosen.
        row: of a row in a layer, besides what is below.
        dense_flop: of an operation in the matrices that all rows use, the head included.
        dense_byte: of reading a byte of them.
        expert_flop: of an operation in routed experts.
        expert_byte: of reading a byte of them.
        prefill_pair: of an operation of attention of prompt rows.
        prefill_kv: of reading a byte of KV for them.
        decode_kv: of attending to a byte of KV with a row of a generated token.
        stairs: what matrices that all rows use cost beyond the line, per operation of one row: for
            1 row, for 2, and so on, never decreasing; for more rows as for the last of these.
    """

    step: float = 0.0
    sample: float = 0.0
    row: float = 0.0
    dense_flop: float = 0.0
    dense_byte: float = 0.0
    expert_flop: float = 0.0
    expert_byte: float = 0.0
    prefill_pair: float = 0.0
    prefill_kv: float = 0.0
    decode_kv: float = 0.0
    stairs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if name != "stairs" and not getattr(self, name) >= 0.0:
                raise ValueError(f"a price is at least 0: {name} is {getattr(self, name)}")
        if not all(lower <= upper for lower, upper in pairwise((0.0, *self.stairs))):
            raise ValueError(f"stairs are at least 0 and never decrease, not {self.stairs}")

    def stair(self, rows: int) -> float:
        """Seconds beyond the line, of each operation that one of so many rows takes."""
        stairs = self.stairs
        return stairs[min(rows, len(stairs)) - 1] if stairs and rows else 0.0


@dataclass(frozen=True, slots=True)
class Curves:
    """What a share of the device's processors is worth.

    Attributes:
        compute: for arithmetic.
        memory: for traffic.
    """

    compute: SpeedCurve = field(default_factory=SpeedCurve)
    memory: SpeedCurve = field(default_factory=SpeedCurve)


@dataclass(frozen=True, slots=True)
class CostModel:
    """The step times of one model on one device; a `StepTimes`.

    Attributes:
        shape: the model's arithmetic.
        prices: what it costs on the whole device.
        curves: what it costs on a share; None if no share was measured.
        contention: what two lanes cost each other; None if no steps were measured in pairs.
    """

    shape: ModelShape
    prices: Prices
    curves: Curves | None = None
    contention: Contention | None = None

    def seconds(self, load: StepLoad, share: float = 1.0) -> float:
        """See `StepTimes.seconds`; an empty step takes no time.

        Raises:
            ValueError: nobody knows what a share is worth.
        """
        if not load.segments:
            return 0.0
        slow = (1.0, 1.0)
        if share != 1.0:
            curves = self.curves
            if curves is None:
                raise ValueError("no share of the device was measured")
            slow = (1.0 / curves.compute.speed(share), 1.0 / curves.memory.speed(share))
        total = self.prices.step + self._head(load.sampled, *slow)
        for segment in load.segments:
            total += segment.layers * self._layer(segment, *slow)
        return total

    def seconds_and_use(self, load: StepLoad, share: float = 1.0) -> tuple[float, float]:
        """Seconds, and the part of the device's memory bandwidth used meanwhile, 0 to 1."""
        total = self.seconds(load, share)
        if not total:
            return 0.0, 0.0
        # With free arithmetic only traffic takes time, and at full speed on the whole device.
        traffic = self._head_bytes_time(load.sampled)
        for segment in load.segments:
            traffic += segment.layers * self._layer(segment, 0.0, 1.0)
        return total, min(1.0, traffic / total)

    def _layer(self, segment: SegmentLoad, compute: float, memory: float) -> float:
        """Seconds of one layer, arithmetic and traffic being slower by these factors."""
        shape, prices, rows = self.shape, self.prices, segment.rows
        prefill = segment.prefill
        padded = shape.padded(rows)
        dense = max(
            compute * prices.dense_flop * shape.dense_flops * padded,
            memory * prices.dense_byte * shape.dense_bytes,
        )
        experts = 0.0
        if shape.num_experts:
            experts = max(
                compute * prices.expert_flop * shape.expert_flops * rows,
                memory * prices.expert_byte * shape.expert_bytes * shape.experts_hit(rows),
            )
        arithmetic = prices.prefill_pair * shape.pair_flops * prefill.pairs + prices.row * rows
        kv = prices.prefill_kv * prefill.context + prices.decode_kv * segment.decode.context
        arithmetic += prices.stair(padded) * shape.dense_flops
        return dense + experts + compute * arithmetic + memory * shape.kv_bytes * kv

    def _head(self, sampled: int, compute: float, memory: float) -> float:
        if not sampled:
            return 0.0
        shape, prices, padded = self.shape, self.prices, self.shape.padded(sampled)
        arithmetic = compute * prices.dense_flop * shape.head_flops * padded
        line = max(arithmetic, memory * self._head_bytes_time(sampled))
        stair = compute * prices.stair(padded) * shape.head_flops
        return prices.sample * sampled + line + stair

    def _head_bytes_time(self, sampled: int) -> float:
        return self.prices.dense_byte * self.shape.head_bytes if sampled else 0.0
