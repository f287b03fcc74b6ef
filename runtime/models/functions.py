"""Functions on rows that blocks share. No weights of their own."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rows / sqrt(mean(rows²) + eps) * weight` over the last dimension (arXiv 1910.07467).

    Args:
        rows: [..., width].
        weight: [width], or one for each of the last dimensions.
        eps: added to the mean.

    Returns:
        A new tensor like `rows`; the statistics are float32.
    """
    if weight.dim() == 1:
        return F.rms_norm(rows, weight.shape, weight, eps)
    return F.rms_norm(rows, weight.shape[-1:], eps=eps).mul_(weight)


def gated_silu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` (SwiGLU, arXiv 2002.05202).

    Args:
        gate_up: [rows, 2 * width], the gate first.

    Returns:
        A new [rows, width].
    """
    gate, up = gate_up.chunk(2, dim=-1)
    # Not torch's silu: it uses another exponential at the end of a vector register, so that an
    # element would depend on its place.
    sigmoid_inverse = gate.neg().exp_().add_(1.0)
    return torch.div(gate, sigmoid_inverse, out=sigmoid_inverse).mul_(up)
