"""Loading parameters from named tensors: fused, cast, and every fault named."""

import pytest
import torch
from tests.support.runners import fail_on_warning
from tests.support.tiny_models import ARCHITECTURES, tiny_config, tiny_shapes, tiny_state_dict
from torch import Tensor

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.models.decoder import decoder_parameters
from twinflow.runtime.models.weights import load_parameters

CPU = torch.device("cpu")
CONFIG = tiny_config("Qwen2ForCausalLM")


def load(
    state: dict[str, Tensor], dtype: torch.dtype = torch.float32, warnings: list[str] | None = None
) -> dict[str, Tensor]:
    on_warning = fail_on_warning if warnings is None else warnings.append
    return load_parameters(decoder_parameters(CONFIG), state.items(), dtype, CPU, on_warning)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_ask_for_the_tensors_of_the_checkpoint(architecture: str, tied: bool) -> None:
    config = tiny_config(architecture, tie_word_embeddings=tied)
    asked = {
        name: parameter.part_shape(rows)
        for parameter in decoder_parameters(config)
        for name, rows in parameter.parts
    }
    assert asked == tiny_shapes(config)


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
        load_parameters(decoder_parameters(CONFIG), pairs, torch.float32, CPU, fail_on_warning)


def test_unused_tensors_are_a_warning() -> None:
    warnings: list[str] = []
    load(tiny_state_dict(CONFIG) | {"visual.patch_embed.weight": torch.ones(2)}, warnings=warnings)
    assert warnings == ["1 tensors of the checkpoint are not used: visual.patch_embed.weight"]


def test_rotary_buffers_of_old_checkpoints_are_fine() -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    assert "final_norm" in load(tiny_state_dict(CONFIG) | buffer)
