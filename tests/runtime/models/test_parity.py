"""Logits and frequencies are those of transformers.

The only module here that imports transformers, which takes seconds.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.support.kernels import kernels_named
from tests.support.runners import FedSequence, feed, make_model, make_runner, random_tokens
from tests.support.tiny_models import (
    ARCHITECTURES,
    ROPE_SCALINGS,
    hf_config_json,
    tiny_config,
    tiny_state_dict,
)
from torch import Tensor

from twinflow.runtime.models.config import ModelConfig, RopeScaling
from twinflow.runtime.models.rope import attention_scale, frequencies

transformers = pytest.importorskip("transformers")
rope_utils = pytest.importorskip("transformers.modeling_rope_utils")

pytestmark = pytest.mark.slow

CONFIGS = {
    **{name: tiny_config(name) for name in ARCHITECTURES},
    **{f"{kind} rope": tiny_config(rope_scaling=s) for kind, s in ROPE_SCALINGS.items()},
    "tied": tiny_config(tie_word_embeddings=True),
    "no grouping": tiny_config(num_heads=4, num_kv_heads=4, head_dim=64),
    "one KV head": tiny_config("Qwen3ForCausalLM", num_heads=5, num_kv_heads=1, head_dim=24),
    "all biases": tiny_config(attention_bias=True, attention_output_bias=True, mlp_bias=True),
    "yarn with a factor": tiny_config(
        rope_scaling=replace(ROPE_SCALINGS["yarn"], attention_factor=1.3, beta_fast=8.0)
    ),
    "other constants": tiny_config(rope_theta=500_000.0, rms_norm_eps=1e-3),
}


def reference(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Any:
    """The same tiny model in transformers."""
    content = hf_config_json(config)
    hf_config = transformers.AutoConfig.for_model(**content)
    model = transformers.AutoModelForCausalLM.from_config(hf_config, dtype=dtype).eval()
    found = model.load_state_dict(tiny_state_dict(config, dtype=dtype), strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) <= {"lm_head.weight"}
    model.tie_weights()
    return model


@torch.no_grad()
def reference_logits(model: Any, token_ids: list[int]) -> Tensor:
    """[tokens, vocab] in float32."""
    logits: Tensor = model(torch.tensor([token_ids])).logits[0].float()
    return logits


def fed(
    config: ModelConfig,
    sizes: list[int],
    dtype: torch.dtype = torch.float32,
    kernels: str = "torch",
) -> FedSequence:
    """A random sequence after it was computed in chunks of these sizes."""
    runner = make_runner(make_model(config, dtype, kernels=kernels_named(kernels)))
    tokens = random_tokens(sum(sizes), config.vocab_size, seed=7)
    sequence = FedSequence(tokens, list(range(3, 4 + len(tokens) // 16)))
    for size in sizes:
        feed(runner, [(sequence, size)])
    return sequence


@pytest.mark.parametrize("kernels", ["torch", "native"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_agree(config: ModelConfig, kernels: str) -> None:
    sequence = fed(config, [1, 1, 62, 37, 1, 9, 1, 1], kernels=kernels)
    expected = reference_logits(reference(config), list(sequence.token_ids))
    tolerance = 1e-5 * float(expected.abs().max())
    for position, row in sequence.logits.items():
        torch.testing.assert_close(row, expected[position], atol=tolerance, rtol=0.0)
    assert expected.std() > 0.3, "a flat model would agree with anything"


def test_dynamic_rope_agrees_with_decoding_beyond_the_trained_context() -> None:
    scaling = ROPE_SCALINGS["dynamic"]
    config = tiny_config(rope_scaling=scaling, max_position=128)
    sequence = fed(config, [1] * 150)
    model = reference(config)
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        for position, token in enumerate(sequence.token_ids):
            output = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            row = sequence.logits[position]
            torch.testing.assert_close(row, output.logits[0, -1], atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_logits_agree_within_rounding(architecture: str) -> None:
    config = tiny_config(architecture)
    sequence = fed(config, [90, 1], torch.bfloat16)
    exact = reference_logits(reference(config), list(sequence.token_ids))
    rounded = reference_logits(reference(config, torch.bfloat16), list(sequence.token_ids))
    for position, row in sequence.logits.items():
        found = (row - exact[position]).pow(2).mean().sqrt()
        usual = (rounded[position] - exact[position]).pow(2).mean().sqrt()
        assert found < 1.5 * usual


@pytest.mark.parametrize("scaling", ROPE_SCALINGS.values(), ids=ROPE_SCALINGS.keys())
@pytest.mark.parametrize(("head_dim", "theta"), [(16, 10_000.0), (64, 500_000.0), (128, 1e6)])
def test_frequencies_are_those_of_transformers(
    scaling: RopeScaling, head_dim: int, theta: float
) -> None:
    config = tiny_config(
        rope_scaling=scaling, head_dim=head_dim, rope_theta=theta, max_position=128
    )
    hf_config = transformers.AutoConfig.for_model(**hf_config_json(config))
    for length in (1, 100, 129, 1000):
        expected, scale = rope_utils.ROPE_INIT_FUNCTIONS[scaling.kind](
            hf_config, torch.device("cpu"), seq_len=length
        )
        found = frequencies(config, torch.tensor([length - 1]))[0]
        torch.testing.assert_close(found, expected, atol=0.0, rtol=2e-6)
        assert attention_scale(scaling) == pytest.approx(scale)
