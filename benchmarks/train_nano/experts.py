"""A mixture of experts that trains fast on one CPU core.

Rows are sorted by expert once, every expert multiplies its own slice, and all reordering is by
gathering in both directions: scattered additions are slow on a CPU.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.train_nano.layers import INIT_STD, GatedMLP, linear


class Experts(nn.Module):
    """Routed experts and a shared one, with DeepSeek-V2's softmax router.

    Args:
        hidden: width of a token.
        size: intermediate size of an expert, and of the shared one.
        count: routed experts.
        top: experts per token; their weights are not normalised.
        scale: on those weights.
    """

    def __init__(self, hidden: int, size: int, count: int, top: int, scale: float) -> None:
        super().__init__()
        self.gate = linear(hidden, count)
        self.gate_proj = nn.Parameter(INIT_STD * torch.randn(count, size, hidden))
        self.up_proj = nn.Parameter(INIT_STD * torch.randn(count, size, hidden))
        self.down_proj = nn.Parameter(torch.zeros(count, hidden, size))
        self.shared_experts = GatedMLP(hidden, size)
        self._count = count
        self._top = top
        self._scale = scale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the chosen experts for [tokens, hidden], and how unbalanced the choice is."""
        scores, weights, chosen = self.choose(x)
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=self._count)
        slices = counts.tolist()
        rows = _reorder(x.repeat_interleave(self._top, dim=0), order)
        gated = F.silu(_grouped(rows, self.gate_proj, slices))
        inner = gated * _grouped(rows, self.up_proj, slices)
        out = _reorder(_grouped(inner, self.down_proj, slices), order.argsort())
        routed = torch.bmm(self._scale * weights.unsqueeze(1), out.view(*chosen.shape, -1))
        share = counts / chosen.numel()
        # Switch Transformers' auxiliary loss (arXiv 2101.03961, equation 4): 1 if balanced.
        imbalance = self._count * (share * scores.mean(0)).sum()
        return routed.squeeze(1) + self.shared_experts(x), imbalance

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [tokens, experts], and weights and indices of the best [tokens, top]."""
        scores: Tensor = self.gate(x).softmax(-1)
        return scores, *scores.topk(self._top, dim=-1)


class _Reorder(torch.autograd.Function):
    """Rows in another order; the gradient is gathered back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return rows[order]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return gradients[0][order.argsort()], None


class _Grouped(torch.autograd.Function):
    """Consecutive slices of rows [n, inputs] times their own weights [groups, outputs, inputs]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, slices: list[int]) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.slices = slices
        out = rows.new_empty(rows.shape[0], weights.shape[1])
        parts = zip(torch.split(rows, slices), weights, torch.split(out, slices), strict=True)
        for part, weight, target in parts:
            torch.mm(part, weight.T, out=target)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weights = ctx.saved_tensors
        of_rows, of_weights = torch.empty_like(rows), torch.empty_like(weights)
        parts = zip(
            *(torch.split(whole, ctx.slices) for whole in (rows, gradients[0], of_rows)),
            strict=True,
        )
        for at, (part, gradient, target) in enumerate(parts):
            torch.mm(gradient, weights[at], out=target)
            torch.mm(gradient.T, part, out=of_weights[at])
        return of_rows, of_weights, None


def _reorder(rows: Tensor, order: Tensor) -> Tensor:
    moved: Tensor = _Reorder.apply(rows, order)  # type: ignore[no-untyped-call]
    return moved


def _grouped(rows: Tensor, weights: Tensor, slices: list[int]) -> Tensor:
    product: Tensor = _Grouped.apply(rows, weights, slices)  # type: ignore[no-untyped-call]
    return product
