"""What both nano models are made of: norm, rotary positions, causal attention, gated MLP."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6
INIT_STD = 0.02


class LanguageModel(Protocol):
    """What training and evaluation need of a model."""

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [batch, length, vocabulary] and a scalar loss beside that of the tokens."""


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain, named as Hugging Face names it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, NORM_EPS)


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden: int, size: int) -> None:
        super().__init__()
        self.gate_proj = linear(hidden, size)
        self.up_proj = linear(hidden, size)
        self.down_proj = output_linear(size, hidden)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer without bias, drawn from a normal distribution."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=INIT_STD)
    return layer


def output_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts at zero: at first a residual block adds nothing."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def rotary_angles(positions: int, width: int, theta: float) -> Tensor:
    """Angles [positions, width / 2] of rotary position embedding (arXiv 2104.09864)."""
    frequencies = theta ** (-torch.arange(0, width, 2).float() / width)
    return torch.outer(torch.arange(positions).float(), frequencies)


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of [batch, heads, length, width] with the scale width ** -0.5.

    Narrower values are padded with zeros: only equal widths have a fused kernel on a CPU.
    """
    width = value.shape[-1]
    padded = F.pad(value, (0, query.shape[-1] - width))
    return F.scaled_dot_product_attention(query, key, padded, is_causal=True)[..., :width]
