"""Puts attention over parts of a sequence together.

With o_r the softmax-weighted mean of the values that rank r holds and lse_r the logarithm of the
sum of its exponentiated scores, the mean over all of them is

    o = Σ_r exp(lse_r - m) o_r / Σ_r exp(lse_r - m),        m = max_r lse_r

(FlashDecoding; arXiv 2507.07120, section 2.1). A rank that saw nothing has o_r = 0, lse_r = -inf.
"""

import torch
from torch import Tensor

from twinflow.parallel.ranks.base import RankGroup


def merge_weight(lse: Tensor, shards: RankGroup) -> Tensor:
    """The share of this rank's mean in the mean over all ranks.

    Args:
        lse: float32 [rows, heads] of this rank, natural logarithm.
        shards: those that hold the parts.

    Returns:
        float32 [rows, heads]; zero where no rank saw anything.
    """
    found = shards.all_gather(lse).view(len(lse), shards.size, -1)
    maximum = found.amax(1).clamp_(min=torch.finfo(torch.float32).min)
    total = torch.zeros_like(maximum)
    for rank in range(shards.size):  # in order, so that the sum is the same on all ranks
        total += (found[:, rank] - maximum).exp_()
    # Where anything was seen, the maximum itself contributes 1.
    return (lse - maximum).exp_().div_(total.clamp_(min=0.5))


def merge_means(mean: Tensor, lse: Tensor, shards: RankGroup) -> Tensor:
    """The mean over what all ranks hold.

    Args:
        mean: float32 [rows, heads, width] over what this rank holds; consumed.
        lse: float32 [rows, heads].
        shards: those that hold the parts.

    Returns:
        [rows, heads, width], the same on all ranks.
    """
    weighted = mean.mul_(merge_weight(lse, shards).unsqueeze(-1))
    return shards.all_reduce(weighted.flatten(1)).view(mean.shape)
