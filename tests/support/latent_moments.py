"""Moments of latents as a model might have them: some directions matter more than others."""

import torch
from torch import Tensor

from twinflow.parallel.latent.transforms.moments import LatentMoments, MomentSums


def random_latents(width: int, seed: int = 0, tokens: int = 512) -> Tensor:
    """[tokens, width] with a steep spectrum, a mean, and the norm that latents have."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    strengths = torch.arange(1, width + 1, dtype=torch.float64) ** -1.0
    rows = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    rows = rows * strengths @ mixing + 0.3
    return rows * torch.rsqrt(rows.pow(2).mean(1, keepdim=True))


def random_queries(width: int, seed: int = 0, tokens: int = 256, heads: int = 3) -> Tensor:
    """[tokens, heads, width]."""
    generator = torch.Generator().manual_seed(1000 + seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(tokens, heads, width, generator=generator, dtype=torch.float64) @ mixing


def random_values(width: int, seed: int = 0, rows: int = 24) -> Tensor:
    """[rows, width]."""
    generator = torch.Generator().manual_seed(2000 + seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def random_moments(width: int, seed: int = 0) -> LatentMoments:
    """Of the three above."""
    sums = MomentSums(width, torch.device("cpu"))
    sums.add_latents(random_latents(width, seed))
    sums.add_queries(random_queries(width, seed))
    return sums.finish(random_values(width, seed))
