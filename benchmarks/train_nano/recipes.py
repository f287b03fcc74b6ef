"""The two models by name: their sizes and how many tokens they are trained on."""

from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.train_nano.dense_model import DenseModel, DenseShape
from benchmarks.train_nano.latent_model import LatentModel, LatentShape

VOCABULARY = 4096
POSITIONS = 2048
ROPE_THETA = 10_000.0

NANO = LatentShape(
    vocabulary=VOCABULARY,
    hidden=256,
    layers=6,
    heads=8,
    latent=128,
    nope=32,
    rope=16,
    value=32,
    dense_size=512,
    expert_size=64,
    experts=32,
    top=4,
    routed_scale=4.0,
    positions=POSITIONS,
    rope_theta=ROPE_THETA,
)
DRAFTER = DenseShape(
    vocabulary=VOCABULARY,
    hidden=192,
    layers=6,
    heads=6,
    kv_heads=2,
    head=32,
    dense_size=384,
    positions=POSITIONS,
    rope_theta=ROPE_THETA,
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model comes about.

    Attributes:
        shape: of the model.
        tokens: to train on.
        summary: of the model card.
    """

    shape: LatentShape | DenseShape
    tokens: int
    summary: str


TARGET = "nano"
RECIPES = {
    TARGET: Recipe(
        NANO,
        5_500_000,
        "A small language model of Python source with multi-head latent attention and a mixture of"
        " experts, in DeepSeek-V2's shape. It exists so that serving can be measured with a trained"
        " model where no other is at hand: quality, accepted drafts, traffic of experts. It is of"
        " no other use: it knows little and remembers less.",
    ),
    "nano-drafter": Recipe(
        DRAFTER,
        4_000_000,
        "Drafts for [nano](../nano/README.md) in speculative decoding: the same tokenizer and text,"
        " a quarter of the size, in Llama's shape.",
    ),
}


def fresh(name: str, seed: int) -> nn.Module:
    """A model with the weights that `seed` gives."""
    torch.manual_seed(seed)
    shape = RECIPES[name].shape
    return LatentModel(shape) if isinstance(shape, LatentShape) else DenseModel(shape)
