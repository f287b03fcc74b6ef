"""Tiny random models of the Llama family: a `ModelConfig`, its weights, its `config.json`.

The names and shapes are written out here, apart from the code under test, so that both can be
compared. Nothing here imports transformers.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from twinflow.runtime.models.config import ModelConfig, RopeScaling

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)

ROPE_SCALINGS = {
    "linear": RopeScaling(kind="linear", factor=2.5),
    "dynamic": RopeScaling(kind="dynamic", factor=2.0, original_max_position=128),
    "llama3": RopeScaling(
        kind="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position=64,
    ),
    "yarn": RopeScaling(kind="yarn", factor=4.0, original_max_position=64),
}

# What `transformers` builds for each architecture, whatever config.json says.
_FIXED: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {"attention_bias": True},
    "Qwen3ForCausalLM": {"qk_norm": True},
}


def tiny_config(architecture: str = "LlamaForCausalLM", **changes: Any) -> ModelConfig:
    """A model of three layers with grouped queries; `changes` are fields of `ModelConfig`."""
    config = ModelConfig(
        architecture=architecture,
        vocab_size=131,
        hidden_size=48,
        intermediate_size=80,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        head_dim=16,
        max_position=512,
        bos_token_id=1,
        eos_token_ids=(2,),
        **_FIXED[architecture],
    )
    return replace(config, **changes)


def tiny_state_dict(
    config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Random weights under their Hugging Face names, projections as [out, in].

    Projections keep the scale of their input, so that attention is neither flat nor one-hot;
    norms and biases differ from their neutral values, so that leaving one out shows.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    state: dict[str, Tensor] = {}
    for name, shape in tiny_shapes(config).items():
        if name.endswith("norm.weight"):
            state[name] = 1.0 + 0.2 * normal(*shape)
        elif name.endswith(".bias"):
            state[name] = 0.5 * normal(*shape)
        elif name == "model.embed_tokens.weight":
            state[name] = normal(*shape)
        else:
            state[name] = normal(*shape) / shape[1] ** 0.5
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def tiny_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the checkpoint."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    projections = {
        "self_attn.q_proj": (queries, hidden, config.attention_bias),
        "self_attn.k_proj": (keys, hidden, config.attention_bias),
        "self_attn.v_proj": (keys, hidden, config.attention_bias),
        "self_attn.o_proj": (hidden, queries, config.attention_output_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        if config.qk_norm:
            shapes[prefix + "self_attn.q_norm.weight"] = (config.head_dim,)
            shapes[prefix + "self_attn.k_norm.weight"] = (config.head_dim,)
        for name, (rows, columns, bias) in projections.items():
            shapes[f"{prefix}{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{prefix}{name}.bias"] = (rows,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def hf_config_json(config: ModelConfig) -> dict[str, Any]:
    """The content of the `config.json` that describes `config`."""
    content: dict[str, Any] = {
        "architectures": [config.architecture],
        "model_type": config.architecture.removesuffix("ForCausalLM").lower(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling_json(config.rope_scaling),
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": config.dtype,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
    }
    match config.architecture:
        case "LlamaForCausalLM":
            content |= {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
        case "MistralForCausalLM":
            content |= {"sliding_window": None}
        case "Qwen2ForCausalLM":
            content |= {"use_sliding_window": False}
        case "Qwen3ForCausalLM":
            content |= {"use_sliding_window": False, "attention_bias": config.attention_bias}
    return content


def _rope_scaling_json(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    content: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        content["original_max_position_embeddings"] = scaling.original_max_position
    if scaling.kind == "llama3":
        content["low_freq_factor"] = scaling.low_freq_factor
        content["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind == "yarn":
        content |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        if scaling.attention_factor is not None:
            content["attention_factor"] = scaling.attention_factor
    return content
