"""Models by the architecture that `config.json` names."""

import torch

from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.runtime.models.base import Model, OnWarning, Placement, Weights
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.decoder import Decoder
from twinflow.runtime.models.weights import source_shapes

DTYPES = (torch.float32, torch.bfloat16)

_MODELS: dict[str, type[Model]] = {}


def register_model(architecture: str, model: type[Model]) -> None:
    """Make an architecture available; a name can be taken only once."""
    if architecture in _MODELS:
        raise ValueError(f"a model for {architecture} is already registered")
    _MODELS[architecture] = model


def model_type(config: ModelConfig) -> type[Model]:
    """The class that computes an architecture.

    Raises:
        CheckpointError: the architecture is unknown.
    """
    found = _MODELS.get(config.architecture)
    if found is None:
        raise CheckpointError(
            f"architecture {config.architecture} is not supported; supported are "
            f"{', '.join(sorted(_MODELS))}"
        )
    return found


def checkpoint_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a checkpoint of the model has, by its Hugging Face name.

    Raises:
        CheckpointError: the architecture is unknown.
    """
    whole = Placement(dtype=torch.float32, device=torch.device("cpu"))
    return source_shapes(model_type(config).parameters(config, whole))


def create_model(
    config: ModelConfig, placement: Placement, weights: Weights, on_warning: OnWarning
) -> Model:
    """Build a model, or the part of it that belongs to a rank, from the tensors of a checkpoint.

    Args:
        config: its shape.
        placement: where to compute it, with whom, and in which dtype: float32 or bfloat16.
        weights: Hugging Face names and whole tensors, in any order and floating point type.
        on_warning: called with one sentence about tensors that the model does not use.

    Raises:
        CheckpointError: the architecture is unknown, or a tensor is missing, doubled, or of
            another shape or type.
        ConfigError: another dtype, or the model cannot be cut for so many ranks.
    """
    found = model_type(config)
    if placement.dtype not in DTYPES:
        raise ConfigError(f"dtype {placement.dtype} is not supported; use float32 or bfloat16")
    return found.load(config, placement, weights, on_warning)


for _architecture in (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "MixtralForCausalLM",
    "Qwen3MoeForCausalLM",
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
    "KimiK2ForCausalLM",
):
    register_model(_architecture, Decoder)
