"""A matrix for each head: [rows, heads, in] to [rows, heads, out] in one batched product.

On a CPU it is computed in float32, like the attention before or behind it; other devices use the
dtype of the weights. How many rows it needs at a time to keep them independent is measured (see
`row_tile`), and rows are padded to that here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from twinflow.runtime.attention.gather import padded_width
from twinflow.runtime.models.linear import LinearFactory
from twinflow.runtime.row_tile import RowKernel, RowTile


class HeadProducts:
    """See the module.

    Args:
        weight: [heads, in, out].
        row_tile: numbers of rows that do not influence each other.
    """

    def __init__(self, weight: Tensor, row_tile: RowTile) -> None:
        self._width = weight.shape[2]
        weight = weight.to(self.dtype(weight.dtype, weight.device))
        self._weight = F.pad(weight, (0, padded_width(self._width) - self._width))
        self._row_tile = row_tile

    @staticmethod
    def dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """In which dtype weights are kept."""
        return torch.float32 if device.type == "cpu" else dtype

    @classmethod
    def create(cls, weight: Tensor, linears: LinearFactory) -> "HeadProducts":
        """The products with a weight [heads, in, out]; `linears` is told what they need."""
        heads, width, out = weight.shape
        product = cls(weight, RowTile(1, batch_invariant=True))
        kernel = RowKernel(
            in_features=heads * width,
            flop_per_row=2 * heads * width * out,
            dtype=product._weight.dtype,
            device=weight.device,
            run=lambda rows: product(rows.view(-1, heads, width)),
        )
        kind = (cls, weight.shape, weight.dtype, weight.device)
        product._row_tile = linears.measure(kind, kernel)
        return product

    def __call__(self, rows: Tensor) -> Tensor:
        """Multiply each head of [rows, heads, in] by its matrix.

        Returns:
            float32 [rows, heads, out], not contiguous.
        """
        count = len(rows)
        padding = self._row_tile.round_up(count) - count
        rows = rows.to(self._weight.dtype)
        if padding:
            rows = F.pad(rows, (0, 0, 0, 0, 0, padding))
        products = torch.bmm(rows.transpose(0, 1), self._weight)[..., : self._width]
        return products.transpose(0, 1)[:count].float()
