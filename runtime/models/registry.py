"""Models by the architecture that `config.json` names."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.runtime.models.base import Model
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.decoder import Decoder

Weights = Iterable[tuple[str, Tensor]]
OnWarning = Callable[[str], None]
ModelLoader = Callable[[ModelConfig, Weights, torch.dtype, torch.device, OnWarning], Model]

DTYPES = (torch.float32, torch.bfloat16)

_LOADERS: dict[str, ModelLoader] = {}


def register_model(architecture: str, load: ModelLoader) -> None:
    """Make an architecture available; a name can be taken only once."""
    if architecture in _LOADERS:
        raise ValueError(f"a model for {architecture} is already registered")
    _LOADERS[architecture] = load


def create_model(
    config: ModelConfig,
    weights: Weights,
    dtype: torch.dtype,
    device: torch.device,
    on_warning: OnWarning,
) -> Model:
    """Build a model from the tensors of a checkpoint.

    Args:
        config: its shape.
        weights: Hugging Face names and tensors, in any order and floating point type.
        dtype: in which to compute, float32 or bfloat16.
        device: where to compute.
        on_warning: called with one sentence about tensors that the model does not use.

    Raises:
        CheckpointError: the architecture is unknown, or a tensor is missing, doubled, or of
            another shape or type.
        ConfigError: another dtype.
    """
    load = _LOADERS.get(config.architecture)
    if load is None:
        raise CheckpointError(
            f"architecture {config.architecture} is not supported; supported are "
            f"{', '.join(sorted(_LOADERS))}"
        )
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype} is not supported; use float32 or bfloat16")
    return load(config, weights, dtype, device, on_warning)


for _architecture in (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
):
    register_model(_architecture, Decoder.load)
