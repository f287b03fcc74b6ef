"""Linear layers: `x @ weightᵀ + bias`, in the form that is fastest on the device.

Whether rows are computed independently of each other, bit by bit, depends on the form, the machine
and the shape; `LinearFactory` measures it (see `row_tile`) and chooses.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from twinflow.runtime.row_tile import RowKernel, RowTile, find_row_tile

# Packing asks for a typical number of rows. From 16 on it chooses one layout and kernel for all,
# down to a single row; for smaller numbers it would choose a vector product of other rounding.
_PACKED_ROWS_HINT = 128
# oneDNN adds up the products of a row one by one, and the rounding error grows with their number.
# In pieces of so many columns it is that of a plain product (measured against float64).
_PIECE_COLUMNS = 288


class Linear(ABC):
    """A linear layer.

    Args:
        weight: [out_features, in_features]; whether it is kept is the variant's business.
        bias: [out_features], if any.

    Attributes:
        in_features: width of a row that goes in.
        out_features: width of a row that comes out.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._bias = bias
        self.out_features, self.in_features = weight.shape
        self._dtype = weight.dtype
        self._device = weight.device

    @abstractmethod
    def __call__(self, rows: Tensor) -> Tensor:
        """[rows, in_features] to a new [rows, out_features]; the input is contiguous."""

    def kernel(self) -> RowKernel:
        """What a row tile probe runs."""
        return RowKernel(
            in_features=self.in_features,
            flop_per_row=2 * self.in_features * self.out_features,
            dtype=self._dtype,
            device=self._device,
            run=self,
        )


class LinearForm(Protocol):
    """Makes linear layers of one form; the variants themselves do."""

    def supports(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether this build and machine can do it, for weights of a dtype."""
        ...

    def __call__(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """A layer; see `Linear`."""
        ...


class PlainLinear(Linear):
    """The weight as it is; every device and dtype."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self._weight = weight

    @staticmethod
    def supports(dtype: torch.dtype, device: torch.device) -> bool:
        """Always."""
        return True

    def __call__(self, rows: Tensor) -> Tensor:
        """See the base class."""
        return F.linear(rows, self._weight, self._bias)


class PackedLinear(Linear):
    """The weight in oneDNN's blocked layout, for CPUs.

    Plain products pack the weight anew in each call, which costs more than the product when there
    are few rows. These are the operators that the inductor compiler uses for frozen weights.

    On CPUs without bfloat16 arithmetic a bfloat16 weight is kept and multiplied in float32, the
    result rounded: the same sums at twice the memory, where a plain product is 20 times slower.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        widened = weight.dtype is torch.bfloat16 and not has_bfloat16_arithmetic()
        self._sum_dtype = torch.float32 if widened else weight.dtype
        self._bias = None if bias is None else bias.to(self._sum_dtype)
        # Sums of pieces in bfloat16 would be rounded to it; oneDNN sums in float32 inside a piece.
        in_pieces = self._sum_dtype is torch.float32
        count = -(-self.in_features // _PIECE_COLUMNS) if in_pieces else 1
        pieces = torch.tensor_split(weight, count, dim=1)
        self._weights = [self._pack(piece) for piece in pieces]
        self._widths = [piece.shape[1] for piece in pieces]

    def __call__(self, rows: Tensor) -> Tensor:
        """See the base class."""
        ops = torch.ops.mkldnn
        columns = torch.split(rows.to(self._sum_dtype), self._widths, dim=1)
        first, *others = zip(columns, self._weights, strict=True)
        out: Tensor = ops._linear_pointwise(*first, self._bias, "none", [], "")
        for piece, weight in others:
            out = ops._linear_pointwise.binary(piece, out, weight, None, "add")
        return out.to(rows.dtype)

    @staticmethod
    def supports(dtype: torch.dtype, device: torch.device) -> bool:
        """Whether oneDNN is there."""
        has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return (
            device.type == "cpu"
            and has_onednn
            and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
            and dtype in (torch.float32, torch.bfloat16)
        )

    def _pack(self, piece: Tensor) -> Tensor:
        plain = piece.to(self._sum_dtype).contiguous()
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(plain, _PACKED_ROWS_HINT)
        return packed


def has_bfloat16_arithmetic() -> bool:
    """Whether this CPU multiplies bfloat16 numbers."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class LinearFactory:
    """Makes each linear layer in its fastest form that keeps rows independent on this machine.

    Each shape is probed once. Where no form keeps rows independent, the fastest one is used.

    Args:
        forms: the fastest first; the last one supports everything.
    """

    def __init__(self, forms: Sequence[LinearForm] = (PackedLinear, PlainLinear)) -> None:
        self._forms = forms
        self._chosen: dict[tuple[object, ...], LinearForm] = {}
        self._measured: dict[tuple[object, ...], RowTile] = {}
        self._row_tile = RowTile(1, batch_invariant=True)

    @property
    def row_tile(self) -> RowTile:
        """What all layers made so far and others need."""
        return self._row_tile

    def require(self, tile: RowTile) -> None:
        """Take into account what matrix products outside of layers need."""
        self._row_tile = self._row_tile.join(tile)

    def probe(self, kind: tuple[object, ...], kernel: RowKernel) -> RowTile:
        """What a product outside of layers needs; those of one kind are measured once."""
        tile = self._measured.get(kind)
        if tile is None:
            tile = self._measured[kind] = find_row_tile([kernel])
        return tile

    def measure(self, kind: tuple[object, ...], kernel: RowKernel) -> RowTile:
        """Take into account a product outside of layers, and tell what it needs; see `probe`.

        Such products pad rows for themselves: only whether they keep rows independent is taken
        into account.
        """
        tile = self.probe(kind, kernel)
        self.require(RowTile(1, tile.batch_invariant))
        return tile

    def create(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """A layer with a weight [out_features, in_features] and a bias [out_features]."""
        kind = (weight.shape, weight.dtype, weight.device, bias is None)
        form = self._chosen.get(kind)
        if form is not None:
            return form(weight, bias)
        made = self._first(weight, bias)
        self._chosen[kind] = made.form
        self.require(made.tile)
        return made.linear

    def _first(self, weight: Tensor, bias: Tensor | None) -> "_Measured":
        """A layer of the first form that keeps rows independent."""
        found: list[_Measured] = []
        for form in self._forms:
            if form.supports(weight.dtype, weight.device):
                linear = form(weight, bias)
                found.append(_Measured(form, linear, find_row_tile([linear.kernel()])))
                if found[-1].tile.batch_invariant:
                    return found[-1]
        return found[0]


@dataclass(frozen=True, slots=True)
class _Measured:
    """A layer, its form, and what that was found to need."""

    form: LinearForm
    linear: Linear
    tile: RowTile
