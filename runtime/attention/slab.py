"""One slab of tiled attention: tensors for its items, and what is done with them in each layer.

A slab is computed into a workspace that the next slab uses again, and merged into a state that
lasts until the layer is done. All views and indices are made once per step.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinflow.parallel.kv_layout import KVLayout
from twinflow.runtime.attention.work_items import Mask, Slab
from twinflow.runtime.attention.workspace import Workspace

# Added to the score of a key that a row must not see. Finite, so that a row that sees no key of a
# span has a maximum to subtract; its sums are zero then.
_HIDDEN = -1e30
# Weights below exp(-80) = 2e-35 are taken for that. It makes no difference to a sum that contains
# exp(0), and the exponential is more than ten times slower where it has to underflow.
_LEAST_EXPONENT = -80.0
# Matrix libraries share the columns of a product out to threads in units of so many, and compute
# the rest in another way, which depends on the number of rows and threads.
_COLUMN_TILE = 16


def value_width(head_dim: int) -> int:
    """Columns of the values as matrices: `head_dim`, padded to what is computed alike."""
    return -(-head_dim // _COLUMN_TILE) * _COLUMN_TILE


@dataclass(frozen=True, slots=True)
class SoftmaxState:
    """Unfinished softmax-weighted sums, a row for each matrix row of the query tiles.

    Attributes:
        weighted: [rows, value_width] sum of exp(score - maximum) * value.
        total: [rows, 1] sum of exp(score - maximum).
        maximum: [rows, 1] largest score.
    """

    weighted: Tensor
    total: Tensor
    maximum: Tensor

    @classmethod
    def take(cls, workspace: Workspace, num_rows: int, head_dim: int) -> "SoftmaxState":
        """A state in a workspace, its content undefined."""
        return cls(
            weighted=workspace.take("weighted", (num_rows, value_width(head_dim))),
            total=workspace.take("total", (num_rows, 1)),
            maximum=workspace.take("maximum", (num_rows, 1)),
        )

    def part(self, start: int, num_rows: int) -> "SoftmaxState":
        """The state of some rows, sharing memory."""
        rows = slice(start, start + num_rows)
        return SoftmaxState(self.weighted[rows], self.total[rows], self.maximum[rows])

    def set(self, other: "SoftmaxState") -> None:
        """Become a copy of another state."""
        self.weighted.copy_(other.weighted)
        self.total.copy_(other.total)
        self.maximum.copy_(other.maximum)

    def join(self, later: "SoftmaxState") -> None:
        """Add the sums over further keys; consumes `later`."""
        maximum = torch.maximum(self.maximum, later.maximum)
        for state in (self, later):
            scale = state.maximum.sub_(maximum).exp_()
            state.weighted.mul_(scale)
            state.total.mul_(scale)
        self.weighted.add_(later.weighted)
        self.total.add_(later.total)
        self.maximum.copy_(maximum)

    def normalised(self) -> Tensor:
        """The finished [rows, value_width]; consumes the state."""
        return self.weighted.div_(self.total)


class SlabRun:
    """Computes one slab, layer after layer.

    Args:
        slab: the items.
        layout: of the KV cache.
        workspace: shared by all slabs of a kernel; slabs run one after another.
        state: of all query tiles of the step.
    """

    def __init__(
        self, slab: Slab, layout: KVLayout, workspace: Workspace, state: SoftmaxState
    ) -> None:
        items, kv_heads, tile_blocks = slab.key_rows.shape
        matrices, rows, dim = items * kv_heads, slab.matrix_rows, layout.head_dim
        tokens = tile_blocks * layout.block_size
        device = state.total.device

        def index(values: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(values.reshape(-1)).to(device)

        self._query_rows = index(slab.query_rows)
        self._key_rows = index(slab.key_rows)
        self._item_tiles = index(slab.item_tiles)
        self._is_first_span = slab.is_first_span
        self._state = state.part(slab.state_start, slab.num_tiles * kv_heads * rows)

        self._queries = workspace.take("queries", (matrices, rows, dim))
        width = value_width(dim)
        self._keys = _Gathered(workspace, "keys", (matrices, tokens, dim), layout)
        self._values = _Gathered(workspace, "values", (matrices, tokens, width), layout)
        self._scores = workspace.take("scores", (matrices, rows, tokens))
        self._weighted = workspace.take("item_weighted", (matrices, rows, width))
        self._total = workspace.take("item_total", (matrices, rows, 1))
        self._maximum = workspace.take("item_maximum", (matrices, rows, 1))
        self._spread = workspace.take("spread", (items, kv_heads * rows))

        scores = self._scores.view(items, kv_heads, rows, tokens)
        self._masks = tuple(_MaskedScores.of(scores, mask) for mask in slab.masks)
        self._segments = tuple(
            SoftmaxState(
                weighted=self._weighted.view(items, -1, width)[segment].view(-1, width),
                total=self._total.view(items, -1)[segment].view(-1, 1),
                maximum=self._maximum.view(items, -1)[segment].view(-1, 1),
            )
            for segment in slab.segments
        )
        # The first segment has an item for each query tile: it takes up the others.
        first = self._segments[0]
        self._sums = tuple(first.part(0, len(other.total)) for other in self._segments[1:])

    def compute(self, queries: Tensor, keys: Tensor, values: Tensor) -> None:
        """Compute the items, and sum them up over the span.

        Args:
            queries: [rows * num_heads, head_dim] float32.
            keys: `KVCache.keys` of the layer.
            values: `KVCache.values` of the layer.
        """
        scores = self._scores
        matrices = self._queries
        torch.index_select(queries, 0, self._query_rows, out=matrices.view(-1, matrices.shape[-1]))
        torch.bmm(matrices, self._keys.gather(keys, self._key_rows).mT, out=scores)
        for masked in self._masks:
            masked.scores.add_(masked.bias)
        scores.sub_(self._span_maximum()).clamp_(min=_LEAST_EXPONENT).exp_()
        for masked in self._masks:
            masked.scores.mul_(masked.visible)
        torch.sum(scores, -1, keepdim=True, out=self._total)
        torch.bmm(scores, self._values.gather(values, self._key_rows), out=self._weighted)
        for whole, segment in zip(self._sums, self._segments[1:], strict=True):
            whole.weighted.add_(segment.weighted)
            whole.total.add_(segment.total)

    def merge(self) -> None:
        """Hand what `compute` found to the state."""
        if self._is_first_span:
            self._state.set(self._segments[0])
        else:
            self._state.join(self._segments[0])

    def _span_maximum(self) -> Tensor:
        """Largest score of each row in its span, for every item: [matrices, rows, 1]."""
        torch.amax(self._scores, -1, keepdim=True, out=self._maximum)
        if not self._sums:
            return self._maximum
        for whole, segment in zip(self._sums, self._segments[1:], strict=True):
            torch.maximum(whole.maximum, segment.maximum, out=whole.maximum)
        by_tile = self._segments[0].maximum.view(-1, self._spread.shape[1])
        torch.index_select(by_tile, 0, self._item_tiles, out=self._spread)
        return self._spread.view(self._maximum.shape)


class _Gathered:
    """Keys or values of all items, brought together from their blocks.

    Args:
        workspace: for the tensors.
        name: of the tensors.
        shape: [matrices, tokens, columns]; columns behind `head_dim` are zero.
        layout: of the KV cache.
    """

    def __init__(
        self, workspace: Workspace, name: str, shape: tuple[int, int, int], layout: KVLayout
    ) -> None:
        dim = layout.head_dim
        self._matrices = workspace.take(name, shape)
        self._stored = self._matrices
        self._is_copied = shape[2] > dim or layout.torch_dtype is not torch.float32
        if self._is_copied:
            stored = (*shape[:2], dim)
            self._stored = workspace.take(f"stored_{name}", stored, layout.torch_dtype)
            self._matrices[..., dim:].zero_()
        self._target = self._matrices[..., :dim]
        self._rows = self._stored.view(-1, layout.block_size * dim)

    def gather(self, source: Tensor, index: Tensor) -> Tensor:
        """float32 [matrices, tokens, columns] of the rows of `source`."""
        torch.index_select(source, 0, index, out=self._rows)
        if self._is_copied:
            self._target.copy_(self._stored)
        return self._matrices


@dataclass(frozen=True, slots=True)
class _MaskedScores:
    """Scores of items that lie on the diagonal.

    Attributes:
        scores: [items, kv_heads, rows, tokens], a view.
        visible: [items, 1, rows, tokens] 1 for keys that a row sees, 0 for the others.
        bias: what to add to the scores before the maximum is taken.
    """

    scores: Tensor
    visible: Tensor
    bias: Tensor

    @classmethod
    def of(cls, scores: Tensor, mask: Mask) -> "_MaskedScores":
        hidden = torch.from_numpy(mask.hidden).to(scores.device).unsqueeze(1).float()
        return cls(scores[mask.items], 1.0 - hidden, hidden * _HIDDEN)
