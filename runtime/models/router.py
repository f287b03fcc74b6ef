"""Which experts a row is sent to, and with what weights.

    s = score(router(rows))                      score: softmax over experts, or sigmoid of each
    c = s + bias                                 what decides; the bias is DeepSeek-V3's
    c = -inf outside of the best groups          a group's score: its best c, or its two best added
    experts = the k largest c
    weights = s[experts] / sum(s[experts]) * f   the division if the model normalises

Mixtral and Qwen3-MoE: softmax, one group. DeepSeek-V2 (arXiv 2405.04434, section 2.1.2): softmax,
groups by their best expert. DeepSeek-V3 (arXiv 2412.19437, section 2.1.2): sigmoid, bias, groups
by their two best. Everything is float32.
"""

import torch
from torch import Tensor

from twinflow.runtime.models.config import MoEConfig
from twinflow.runtime.models.linear import Linear

# Added to the divisor, as DeepSeek does: sigmoids of all chosen experts may underflow.
_TINY = 1e-20


class Router:
    """Chooses experts for rows.

    Args:
        config: how.
        linear: float32, from hidden to one logit per expert.
        bias: float32 [experts], on the choice only.
    """

    def __init__(self, config: MoEConfig, linear: Linear, bias: Tensor | None) -> None:
        self._config = config
        self._linear = linear
        self._bias = bias

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The experts of rows.

        Args:
            rows: [rows, hidden].

        Returns:
            int64 [rows, k] experts, the best first, and their float32 [rows, k] weights.
        """
        config = self._config
        logits = self._linear(rows.float())
        scores = logits.softmax(dim=-1) if config.score == "softmax" else _sigmoid(logits)
        choice = scores if self._bias is None else scores + self._bias
        if config.num_groups > 1:
            choice = self._mask_groups(choice)
        experts = _largest(choice, config.experts_per_token)
        weights = scores.gather(1, experts)
        if config.normalize:
            weights = weights / _sum_in_order(weights).add_(_TINY)
        return experts, weights.mul_(config.scaling_factor)

    def _mask_groups(self, choice: Tensor) -> Tensor:
        """`choice` with -inf for the experts that are not in the best groups."""
        config = self._config
        grouped = choice.view(len(choice), config.num_groups, -1)
        if config.group_score == "max":
            group_scores = grouped.amax(dim=-1)
        else:
            group_scores = _sum_in_order(grouped.topk(2, dim=-1).values).squeeze(-1)
        open_groups = torch.zeros_like(group_scores, dtype=torch.bool)
        open_groups.scatter_(1, _largest(group_scores, config.top_groups), True)
        return grouped.masked_fill(~open_groups[..., None], -torch.inf).view_as(choice)


def _largest(values: Tensor, count: int) -> Tensor:
    """Indices of the largest of each row, falling; of equal ones the first, unlike `topk`."""
    return values.sort(dim=1, descending=True, stable=True).indices[:, :count]


def _sum_in_order(values: Tensor) -> Tensor:
    """Sum over the last dimension, which is kept, one by one: the same for any number of rows."""
    first, *others = values.unbind(-1)
    total = first.clone()
    for other in others:
        total += other
    return total.unsqueeze(-1)


def _sigmoid(values: Tensor) -> Tensor:
    # Not torch's sigmoid: it uses another exponential at the end of a vector register, so that an
    # element would depend on its place.
    return values.neg().exp_().add_(1.0).reciprocal_()
