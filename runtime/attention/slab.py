"""One slab of tiled attention: tensors for its items, and what is done with them in each layer.

A slab is computed into a workspace that the next slab uses again, and merged into a state that
lasts until the layer is done. All views and indices are made once per step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinflow.runtime.attention.gather import Gather
from twinflow.runtime.attention.work_items import Mask, Slab
from twinflow.runtime.attention.workspace import Workspace

# Added to the score of a key that a row must not see. Finite, so that a row that sees no key of a
# span has a maximum to subtract; its sums are zero then.
_HIDDEN = -1e30
# Weights below exp(-80) = 2e-35 are taken for that. It makes no difference to a sum that contains
# exp(0), and the exponential is more than ten times slower where it has to underflow.
_LEAST_EXPONENT = -80.0
# A total that no row has which saw a key.
_LEAST_TOTAL = 0.5


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
    def take(
        cls, workspace: Workspace, num_rows: int, value_width: int, name: str = "state"
    ) -> "SoftmaxState":
        """A state in a workspace, its content undefined."""
        return cls(
            weighted=workspace.take(f"{name}_weighted", (num_rows, value_width)),
            total=workspace.take(f"{name}_total", (num_rows, 1)),
            maximum=workspace.take(f"{name}_maximum", (num_rows, 1)),
        )

    def part(self, start: int, num_rows: int) -> "SoftmaxState":
        """The state of some rows, sharing memory."""
        rows = slice(start, start + num_rows)
        return SoftmaxState(self.weighted[rows], self.total[rows], self.maximum[rows])

    def clear(self) -> None:
        """Become the state of rows that have seen no key."""
        self.weighted.zero_()
        self.total.zero_()
        self.maximum.fill_(_HIDDEN)

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

    def log_sum_exp(self) -> Tensor:
        """[rows, 1] logarithm of the sum of exp(score); -inf for a row that saw no key."""
        return self.total.log().add_(self.maximum)

    def normalised(self) -> Tensor:
        """The finished [rows, value_width], zero for a row that saw no key; consumes the state.

        The largest score contributes 1 to the total of a row that saw a key.
        """
        return self.weighted.div_(self.total.clamp_(min=_LEAST_TOTAL))


class SlabRun:
    """Computes one slab, layer after layer.

    Args:
        slab: the items.
        gather: brings the keys and values of the items together.
        workspace: shared by all slabs of a kernel; slabs run one after another.
    """

    def __init__(self, slab: Slab, gather: Gather, workspace: Workspace) -> None:
        items, kv_heads, _ = slab.key_rows.shape
        rows, tokens, width = slab.matrix_rows, gather.num_tokens, gather.value_width
        matrices = items * kv_heads
        self.span = slab.span
        self._gather = gather
        self._state_start = slab.state_start
        self._num_state_rows = slab.num_tiles * kv_heads * rows
        self._query_rows = torch.from_numpy(slab.query_rows.reshape(-1)).to(workspace.device)
        self._item_tiles = torch.from_numpy(slab.item_tiles).to(workspace.device)

        self._queries = workspace.take("queries", (matrices, rows, gather.key_width))
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

    @property
    def num_scores(self) -> int:
        """Elements of `score`."""
        return self._scores.numel()

    def compute(self, queries: Tensor, planes: Sequence[Tensor]) -> None:
        """Compute the items, and sum them up over the span.

        Args:
            queries: [rows * num_heads, key_width] float32.
            planes: what `Gather.__call__` takes, of the layer.
        """
        self._weigh(self._score(queries, planes))

    def score(self, queries: Tensor, planes: Sequence[Tensor], out: Tensor) -> None:
        """The first half of `compute`: write the scores to `out`, [num_scores]."""
        self._score(queries, planes)
        out.copy_(self._scores.view(-1))

    def weigh(self, scores: Tensor, planes: Sequence[Tensor]) -> None:
        """The other half, with scores [num_scores] that may have changed in between."""
        _, values = self._gather(planes)
        self._scores.view(-1).copy_(scores)
        self._weigh(values)

    def _score(self, queries: Tensor, planes: Sequence[Tensor]) -> Tensor:
        """Compute the scores; returns the values."""
        matrices = self._queries
        torch.index_select(queries, 0, self._query_rows, out=matrices.view(-1, matrices.shape[-1]))
        keys, values = self._gather(planes)
        torch.bmm(matrices, keys.mT, out=self._scores)
        return values

    def _weigh(self, values: Tensor) -> None:
        """Turn scores into weights, and sum the values up with them."""
        scores = self._scores
        for masked in self._masks:
            masked.scores.add_(masked.bias)
        scores.sub_(self._span_maximum()).clamp_(min=_LEAST_EXPONENT).exp_()
        for masked in self._masks:
            masked.scores.mul_(masked.visible)
        torch.sum(scores, -1, keepdim=True, out=self._total)
        torch.bmm(scores, values, out=self._weighted)
        for whole, segment in zip(self._sums, self._segments[1:], strict=True):
            whole.weighted.add_(segment.weighted)
            whole.total.add_(segment.total)

    def merge(self, state: SoftmaxState) -> None:
        """Hand what `compute` found to the state of all query tiles of the step."""
        part = state.part(self._state_start, self._num_state_rows)
        if self.span == 0:
            part.set(self._segments[0])
        else:
            part.join(self._segments[0])

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
