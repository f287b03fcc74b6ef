"""Loading parameters from named tensors: fused, cast, and every fault named."""

from dataclasses import replace

import pytest
import torch
from tests.support.runners import fail_on_warning
from tests.support.tiny_models import ARCHITECTURES, tiny_config, tiny_shapes, tiny_state_dict
from torch import Tensor

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.decoder import Decoder
from twinflow.runtime.models.registry import checkpoint_shapes, create_model
from twinflow.runtime.models.weights import load_parameters

CPU = torch.device("cpu")
CONFIG = tiny_config("Qwen2ForCausalLM")
PLACEMENT = Placement(dtype=torch.float32, device=CPU)


def load(state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    loaded, others = load_parameters(
        Decoder.parameters(CONFIG, PLACEMENT), state.items(), dtype, CPU
    )
    assert not others
    return loaded


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_ask_for_the_tensors_of_the_checkpoint(architecture: str, tied: bool) -> None:
    config = tiny_config(architecture, tie_word_embeddings=tied)
    assert checkpoint_shapes(config) == tiny_shapes(config)


def test_stacks_what_belongs_together() -> None:
    state = tiny_state_dict(CONFIG)
    loaded = load(state)
    prefix = "model.layers.1.self_attn."
    for kind in ("weight", "bias"):
        expected = torch.cat([state[f"{prefix}{name}_proj.{kind}"] for name in "qkv"])
        assert torch.equal(loaded[f"1.query_key_value.{kind}"], expected)
    mlp = "model.layers.2.mlp."
    expected = torch.cat([state[f"{mlp}gate_proj.weight"], state[f"{mlp}up_proj.weight"]])
    assert torch.equal(loaded["2.gate_up.weight"], expected)


def test_casts_to_the_dtype_and_copies() -> None:
    state = tiny_state_dict(CONFIG, dtype=torch.float16)
    loaded = load(state, torch.bfloat16)
    assert {tensor.dtype for tensor in loaded.values()} == {torch.bfloat16}
    expected = state["model.norm.weight"].to(torch.bfloat16)
    state["model.norm.weight"].zero_()
    assert torch.equal(loaded["final_norm"], expected)


def test_missing_tensors_are_named() -> None:
    state = tiny_state_dict(CONFIG)
    del state["model.layers.0.self_attn.k_proj.bias"], state["lm_head.weight"]
    with pytest.raises(
        CheckpointError,
        match=r"2 of \d+ tensors are missing.*: lm_head.weight, model.layers.0.self_attn.k_proj",
    ):
        load(state)


def test_a_long_list_of_missing_tensors_is_cut() -> None:
    with pytest.raises(CheckpointError, match=r"model.embed_tokens.weight, .* and \d+ more$"):
        load({})


def test_a_wrong_shape_is_named_with_what_was_found_and_expected() -> None:
    state = tiny_state_dict(CONFIG)
    name = "model.layers.2.mlp.down_proj.weight"
    state[name] = state[name].T.contiguous()
    with pytest.raises(
        CheckpointError, match=rf"tensor {name}: found shape \[80, 48\], expected \[48, 80\]"
    ):
        load(state)


def test_quantised_tensors_are_refused() -> None:
    state = tiny_state_dict(CONFIG)
    name = "model.layers.0.mlp.up_proj.weight"
    state[name] = state[name].to(torch.int8)
    with pytest.raises(CheckpointError, match=rf"tensor {name}: found type torch.int8"):
        load(state)


def test_a_tensor_that_comes_twice_is_refused() -> None:
    pairs = [*tiny_state_dict(CONFIG).items(), ("model.norm.weight", torch.ones(48))]
    with pytest.raises(CheckpointError, match=r"tensor model.norm.weight comes twice"):
        load_parameters(Decoder.parameters(CONFIG, PLACEMENT), pairs, torch.float32, CPU)


def test_unused_tensors_are_a_warning() -> None:
    warnings: list[str] = []
    state = tiny_state_dict(CONFIG) | {"visual.patch_embed.weight": torch.ones(2)}
    create_model(CONFIG, PLACEMENT, state.items(), warnings.append)
    assert warnings == ["1 tensors of the checkpoint are not used: visual.patch_embed.weight"]


def test_rotary_buffers_of_old_checkpoints_are_fine() -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    state = tiny_state_dict(CONFIG) | buffer
    assert create_model(CONFIG, PLACEMENT, state.items(), fail_on_warning).config is CONFIG


def test_layers_for_further_tokens_are_fine_where_the_config_names_them() -> None:
    state = tiny_state_dict(CONFIG) | {"model.layers.3.eh_proj.weight": torch.ones(2, 2)}
    config = replace(CONFIG, draft_layers=1)
    assert create_model(config, PLACEMENT, state.items(), fail_on_warning).config is config
    warnings: list[str] = []
    create_model(CONFIG, PLACEMENT, state.items(), warnings.append)
    assert warnings == ["1 tensors of the checkpoint are not used: model.layers.3.eh_proj.weight"]
