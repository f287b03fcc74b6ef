"""Softmax weights as integers, so that sums do not depend on the order of summation.

A floating-point sum over the vocabulary is reduced in an order that may change with the shape of
the batch or the alignment of a row. Integer sums are exact: equal logits give equal sums in every
batch, and a running sum may stop anywhere.
"""

import math

import torch
from torch import Tensor


def weight_bits(vocab_size: int) -> int:
    """Bits after the binary point such that a sum over the vocabulary stays within int64."""
    return 62 - math.ceil(math.log2(max(vocab_size, 2)))


def softmax_weights(logits: Tensor, maximum: Tensor, bits: int) -> Tensor:
    """exp(logits - maximum) in units of 2**-bits, int64 of the shape of `logits`.

    Args:
        logits: fp32 [R, n].
        maximum: fp32 [R, 1], the largest logit of each row.
        bits: see `weight_bits`.
    """
    return torch.exp(logits - maximum).mul_(2.0**bits).to(torch.int64)


def log_normalizer(logits: Tensor) -> Tensor:
    """log(sum(exp(logits))) of each row, fp64 [R] for fp32 logits [R, V]."""
    bits = weight_bits(logits.shape[-1])
    maximum = logits.amax(dim=-1, keepdim=True)
    total = softmax_weights(logits, maximum, bits).sum(dim=-1)
    return maximum.squeeze(-1).double() + torch.log(total.double() * 2.0**-bits)
