"""Sizes of the nano models that a test can train, and the directories of the trained ones."""

from pathlib import Path

import torch
from benchmarks.train_nano.dense_model import DenseModel, DenseShape
from benchmarks.train_nano.latent_model import LatentModel, LatentShape
from torch import nn

MODELS = Path(__file__).parents[1] / "models"
NANO = MODELS / "nano"
DRAFTER = MODELS / "nano-drafter"
EXCERPT = MODELS / "held-out.txt"

TINY_LATENT = LatentShape(
    vocabulary=300,
    hidden=32,
    layers=2,
    heads=2,
    latent=16,
    nope=8,
    rope=4,
    value=8,
    dense_size=48,
    expert_size=16,
    experts=4,
    top=2,
    routed_scale=1.5,
    positions=2048,
    rope_theta=10_000.0,
)
TINY_DENSE = DenseShape(
    vocabulary=300,
    hidden=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head=8,
    dense_size=48,
    positions=2048,
    rope_theta=10_000.0,
)


def tiny(shape: LatentShape | DenseShape) -> nn.Module:
    """A model in which every weight matters and is exact in bfloat16."""
    torch.manual_seed(0)
    model = LatentModel(shape) if isinstance(shape, LatentShape) else DenseModel(shape)
    with torch.no_grad():
        for weight in model.parameters():
            centre = 1.0 if weight.dim() == 1 else 0.0
            weight.copy_((centre + 0.2 * torch.randn_like(weight)).bfloat16())
    return model.eval()
