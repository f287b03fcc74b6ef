"""The tensors that a model needs, compared with those that a checkpoint has (rows C3, C4)."""

from pathlib import Path

import pytest
import torch
from tests.support.checkpoints import assert_one_line, small_config, write_checkpoint
from tests.support.tiny_models import (
    ARCHITECTURES,
    EXPERT_ARCHITECTURES,
    tiny_shapes,
    tiny_state_dict,
)

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.weights import Checkpoint
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.registry import checkpoint_shapes

CONFIGS = [small_config(architecture) for architecture in ARCHITECTURES + EXPERT_ARCHITECTURES] + [
    small_config(tie_word_embeddings=True),
    small_config(attention_bias=True, attention_output_bias=True, mlp_bias=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config.architecture))
def test_expected_shapes_are_those_of_the_architecture(config: ModelConfig) -> None:
    assert checkpoint_shapes(config) == tiny_shapes(config)


def refused(directory: Path, config: ModelConfig) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory).check_shapes(checkpoint_shapes(config))
    return caught.value


def test_missing_tensors_are_listed(tmp_path: Path) -> None:
    config = small_config()
    state = tiny_state_dict(config)
    del state["lm_head.weight"], state["model.layers.2.self_attn.k_proj.weight"]
    error = refused(write_checkpoint(tmp_path, config, state), config)
    assert_one_line(
        error, "2 of 30 tensors are missing", "lm_head.weight, model.layers.2.self_attn.k_proj"
    )


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    config = small_config()
    error = refused(write_checkpoint(tmp_path, config, {"a": torch.ones(1)}), config)
    assert_one_line(error, "30 of 30 tensors are missing", "and 25 more")


def test_extra_tensors_are_reported(tmp_path: Path) -> None:
    config = small_config(tie_word_embeddings=True)
    state = tiny_state_dict(config)
    state["lm_head.weight"] = torch.ones(4, 4)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, config, state))
    assert checkpoint.check_shapes(checkpoint_shapes(config)) == ("lm_head.weight",)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.mlp.up_proj.weight", (48, 80)),  # transposed
        ("model.embed_tokens.weight", (299, 48)),  # another vocabulary
        ("model.layers.1.self_attn.q_proj.weight", (80, 48)),  # another number of heads
        ("model.norm.weight", (48, 1)),
    ],
)
def test_another_shape_is_named(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    config = small_config()
    state = tiny_state_dict(config)
    expected = list(state[name].shape)
    state[name] = torch.ones(shape)
    error = refused(write_checkpoint(tmp_path, config, state), config)
    assert_one_line(error, f"{name!r}: found the shape {list(shape)}, expected {expected}")
