"""Brings the keys and values of a slab's items together from the blocks that they are in.

One object belongs to one slab and is used in every layer. Its tensors are in a workspace that the
slabs of a kernel share.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from twinflow.runtime.attention.work_items import Slab
from twinflow.runtime.attention.workspace import Workspace

# Matrix libraries share the columns of a product out to threads in units of so many, and compute
# the rest in another way, which depends on the number of rows and threads.
_COLUMN_TILE = 16


def padded_width(width: int) -> int:
    """Columns of values as matrices: `width`, padded to what is computed alike."""
    return -(-width // _COLUMN_TILE) * _COLUMN_TILE


class Gather(ABC):
    """Keys and values of a slab as matrices.

    Attributes:
        num_tokens: token slots of a KV tile.
        key_width: columns of the keys, padding included.
        value_width: columns of the values, padding included.
    """

    def __init__(self, num_tokens: int, key_width: int, value_width: int) -> None:
        self.num_tokens = num_tokens
        self.key_width = key_width
        self.value_width = value_width

    @abstractmethod
    def __call__(self, planes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Gather from one layer.

        Args:
            planes: the memory of the layer, as the variant defines it.

        Returns:
            float32 [matrices, num_tokens, key_width] and [matrices, num_tokens, value_width],
            padding zero; valid until the next call on the workspace.
        """


class HeadGather(Gather):
    """From rows that each hold a block of one head: one plane for keys, one for values.

    Args:
        slab: its `key_rows` are rows of both planes.
        widths: elements of a key and of a value.
        block_size: token slots of a row.
        dtype: of the planes.
        workspace: for the results.
    """

    def __init__(
        self,
        slab: Slab,
        widths: tuple[int, int],
        block_size: int,
        dtype: torch.dtype,
        workspace: Workspace,
    ) -> None:
        items, kv_heads, blocks = slab.key_rows.shape
        key_width, value_width = widths
        super().__init__(blocks * block_size, key_width, padded_width(value_width))
        self._index = torch.from_numpy(slab.key_rows.reshape(-1)).to(workspace.device)
        matrices = (items * kv_heads, self.num_tokens)
        self._keys = Gathered(workspace, "keys", (*matrices, key_width), (key_width, dtype))
        values = (*matrices, self.value_width)
        self._values = Gathered(workspace, "values", values, (value_width, dtype))

    def __call__(self, planes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See the base class; `planes` are keys and values, [rows, block_size * width]."""
        keys, values = planes
        return self._keys.fill(keys, self._index), self._values.fill(values, self._index)


class Gathered:
    """Matrices that are filled from rows of some plane.

    Args:
        workspace: for the tensors.
        name: of the tensors.
        shape: [matrices, tokens, columns].
        stored: elements of a token in the plane, and their dtype; the columns behind are zero.
    """

    def __init__(
        self,
        workspace: Workspace,
        name: str,
        shape: tuple[int, int, int],
        stored: tuple[int, torch.dtype],
    ) -> None:
        width, dtype = stored
        self._matrices = workspace.take(name, shape)
        self._stored = self._matrices
        self._is_copied = shape[2] > width or dtype is not torch.float32
        if self._is_copied:
            self._stored = workspace.take(f"stored_{name}", (*shape[:2], width), dtype)
            self._matrices[..., width:].zero_()
        self._target = self._matrices[..., :width]

    def fill(self, plane: Tensor, index: Tensor) -> Tensor:
        """float32 [matrices, tokens, columns] of some rows of `plane`."""
        torch.index_select(plane, 0, index, out=self._stored.view(-1, plane.shape[1]))
        if self._is_copied:
            self._target.copy_(self._stored)
        return self._matrices
