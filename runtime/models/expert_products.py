"""The matrix products of experts, each over the rows that were sent to it.

Rows lie in groups, one for each expert, one after another. Two forms compute
`down(silu(gate(rows)) * up(rows))` of each group: one expert after another, or all in one grouped
product on devices that have it. Choosing experts and adding up their results is not done here.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from twinflow.runtime.models.functions import gated_silu
from twinflow.runtime.models.linear import LinearFactory
from twinflow.runtime.row_tile import RowKernel, RowTile

_PROBED_EXPERTS = 3


class ExpertProducts(ABC):
    """The experts of one layer that a rank holds weights of.

    Attributes:
        row_tile: sizes of groups are multiples of this.
    """

    row_tile: RowTile

    @abstractmethod
    def __call__(self, rows: Tensor, sizes: Tensor) -> Tensor:
        """Send each group of rows through its expert.

        Args:
            rows: [rows, hidden], at least as many as the groups have.
            sizes: int64 [experts], rows of each group.

        Returns:
            A new [rows, hidden]; rows behind the last group are undefined.
        """


class LoopedExperts(ExpertProducts):
    """One expert after another, those without rows left out. Every device and dtype.

    Args:
        gate_up: [experts, 2 * inner, hidden], the gate first.
        down: [experts, hidden, inner].
        linears: makes linear layers.
    """

    def __init__(self, gate_up: Tensor, down: Tensor, linears: LinearFactory) -> None:
        self._experts = [
            (linears.create(wide), linears.create(narrow))
            for wide, narrow in zip(gate_up, down, strict=True)
        ]
        self.row_tile = linears.row_tile

    def __call__(self, rows: Tensor, sizes: Tensor) -> Tensor:
        """See the base class."""
        out = torch.empty_like(rows)
        start = 0
        for (gate_up, down), size in zip(self._experts, sizes.tolist(), strict=True):
            if size:
                end = start + size
                out[start:end] = down(gated_silu(gate_up(rows[start:end])))
                start = end
        return out


class GroupedExperts(ExpertProducts):
    """All experts in two grouped products; the host never waits for the sizes of groups.

    Args:
        gate_up: [experts, 2 * inner, hidden], the gate first.
        down: [experts, hidden, inner].
        linears: measures each shape once.
    """

    def __init__(self, gate_up: Tensor, down: Tensor, linears: LinearFactory) -> None:
        self._gate_up = gate_up.mT
        self._down = down.mT
        kind = ("experts", gate_up.shape, down.shape, gate_up.dtype, gate_up.device)
        self.row_tile = linears.probe(kind, self._kernel())

    @staticmethod
    def supports(gate_up: Tensor, down: Tensor) -> bool:
        """Whether the device has grouped products for such weights: rows of whole 16 bytes."""
        aligned = all(weight.shape[2] * weight.itemsize % 16 == 0 for weight in (gate_up, down))
        return (
            gate_up.is_cuda
            and gate_up.dtype is torch.bfloat16
            and len(gate_up) > 0
            and aligned
            and hasattr(F, "grouped_mm")
        )

    def __call__(self, rows: Tensor, sizes: Tensor) -> Tensor:
        """See the base class."""
        ends = sizes.cumsum(0).to(torch.int32)
        wide = F.grouped_mm(rows, self._gate_up, offs=ends)
        return F.grouped_mm(gated_silu(wide), self._down, offs=ends)

    def _kernel(self) -> RowKernel:
        """What a row tile probe runs: the rows in the middle one of three groups of one size."""
        wide = self._gate_up.mT[:1].repeat(_PROBED_EXPERTS, 1, 1).mT
        narrow = self._down.mT[:1].repeat(_PROBED_EXPERTS, 1, 1).mT

        def run(rows: Tensor) -> Tensor:
            ends = torch.arange(1, _PROBED_EXPERTS + 1, device=rows.device) * len(rows)
            ends = ends.to(torch.int32)
            groups = torch.cat((rows.flip(0), rows, rows.flip(0)))
            inner = gated_silu(F.grouped_mm(groups, wide, offs=ends))
            return F.grouped_mm(inner, narrow, offs=ends)[len(rows) : 2 * len(rows)]

        hidden, double = self._gate_up.shape[1:]
        return RowKernel(
            in_features=hidden,
            flop_per_row=3 * _PROBED_EXPERTS * hidden * double,
            dtype=self._gate_up.dtype,
            device=self._gate_up.device,
            run=run,
        )


def create_products(gate_up: Tensor, down: Tensor, linears: LinearFactory) -> ExpertProducts:
    """The fastest form that keeps rows independent on this machine; else the fastest.

    Args:
        gate_up: [experts, 2 * inner, hidden], the gate first.
        down: [experts, hidden, inner].
        linears: measures the forms and is told what the chosen one needs.
    """
    if not GroupedExperts.supports(gate_up, down):
        return LoopedExperts(gate_up, down, linears)
    grouped = GroupedExperts(gate_up, down, linears)
    invariant = grouped.row_tile.batch_invariant
    if not invariant:
        sample = LoopedExperts(gate_up[:1], down[:1], LinearFactory())
        if sample.row_tile.batch_invariant:
            return LoopedExperts(gate_up, down, linears)
    linears.require(RowTile(1, invariant))
    return grouped
