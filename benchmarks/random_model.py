"""Models with random weights, for benchmarks to which only their sizes matter."""

from collections.abc import Iterator

import torch
from torch import Tensor

from twinflow.runtime.models.base import Model, Placement
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.registry import checkpoint_shapes, create_model

_STANDARD_DEVIATION = 0.02


def random_model(config: ModelConfig, placement: Placement) -> Model:
    """Build a model; the same weights on every rank and in every process."""
    return create_model(config, placement, _weights(config), on_warning=lambda text: None)


def _weights(config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for name, shape in checkpoint_shapes(config).items():
        if len(shape) == 1:  # norms
            yield name, torch.ones(shape)
        else:
            yield name, _STANDARD_DEVIATION * torch.randn(shape, generator=generator)
