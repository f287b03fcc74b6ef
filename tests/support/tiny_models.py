"""Tiny random models: a `ModelConfig`, its weights, its `config.json`.

The names and shapes are written out here, apart from the code under test, so that both can be
compared. Nothing here imports transformers.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from twinflow.runtime.models.config import LatentConfig, ModelConfig, MoEConfig, RopeScaling

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
EXPERT_ARCHITECTURES = ("MixtralForCausalLM", "Qwen3MoeForCausalLM")
LATENT_ARCHITECTURES = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")

Shapes = dict[str, tuple[int, ...]]

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

_LATENT = LatentConfig(query_rank=24, kv_rank=32, nope_dim=12, rope_dim=8, value_dim=10)

# What `transformers` builds for each architecture, whatever config.json says.
_FIXED: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {"attention_bias": True},
    "Qwen3ForCausalLM": {"qk_norm": True},
    "MixtralForCausalLM": {
        "rms_norm_eps": 1e-5,
        "moe": MoEConfig(layers=(0, 1, 2), num_experts=8, experts_per_token=2, expert_size=80),
    },
    "Qwen3MoeForCausalLM": {
        "qk_norm": True,
        "moe": MoEConfig(layers=(0, 2), num_experts=6, experts_per_token=3, expert_size=28),
    },
    "DeepseekV2ForCausalLM": {
        "num_kv_heads": 1,
        "head_dim": 8,
        "latent": _LATENT,
        "moe": MoEConfig(
            layers=(1, 2),
            num_experts=8,
            experts_per_token=3,
            expert_size=28,
            shared_size=56,
            num_groups=4,
            top_groups=2,
            normalize=False,
            scaling_factor=1.5,
        ),
    },
    "DeepseekV3ForCausalLM": {
        "num_kv_heads": 1,
        "head_dim": 8,
        "latent": _LATENT,
        "moe": MoEConfig(
            layers=(1, 2),
            num_experts=8,
            experts_per_token=3,
            expert_size=28,
            shared_size=28,
            score="sigmoid",
            num_groups=4,
            top_groups=2,
            group_score="top2",
            correction_bias=True,
            scaling_factor=2.5,
        ),
    },
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
    )
    return replace(config, **(_FIXED[architecture] | changes))


# One of each kind: grouped queries, experts, latents.
TINY_KINDS = {
    "gqa": tiny_config(),
    "moe": tiny_config("Qwen3MoeForCausalLM"),
    "mla": tiny_config("DeepseekV2ForCausalLM"),
}


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
        elif name.endswith("e_score_correction_bias"):
            state[name] = 0.2 * normal(*shape)
        elif name == "model.embed_tokens.weight":
            state[name] = normal(*shape)
        else:
            state[name] = normal(*shape) / shape[1] ** 0.5
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def tiny_shapes(config: ModelConfig) -> Shapes:
    """Shape of every tensor of the checkpoint."""
    hidden = config.hidden_size
    shapes: Shapes = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        attention = _latent_shapes(config) if config.latent else _head_shapes(config)
        has_experts = config.moe is not None and layer in config.moe.layers
        mlp = _expert_shapes(config) if has_experts else _dense_shapes(config)
        norms = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        for name, shape in (norms | attention | mlp).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def _head_shapes(config: ModelConfig) -> Shapes:
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, bias = config.hidden_size, config.attention_bias
    shapes: Shapes = {}
    if config.qk_norm:
        shapes["self_attn.q_norm.weight"] = (config.head_dim,)
        shapes["self_attn.k_norm.weight"] = (config.head_dim,)
    for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        shapes |= _linear(f"self_attn.{name}", rows, hidden, bias)
    return shapes | _linear("self_attn.o_proj", hidden, queries, config.attention_output_bias)


def _latent_shapes(config: ModelConfig) -> Shapes:
    latent, heads, hidden = config.latent, config.num_heads, config.hidden_size
    assert latent is not None
    query_dim = latent.nope_dim + latent.rope_dim
    shapes: Shapes = {}
    if latent.query_rank is None:
        shapes["self_attn.q_proj.weight"] = (heads * query_dim, hidden)
    else:
        shapes["self_attn.q_a_proj.weight"] = (latent.query_rank, hidden)
        shapes["self_attn.q_a_layernorm.weight"] = (latent.query_rank,)
        shapes["self_attn.q_b_proj.weight"] = (heads * query_dim, latent.query_rank)
    shapes["self_attn.kv_a_proj_with_mqa.weight"] = (latent.kv_rank + latent.rope_dim, hidden)
    shapes["self_attn.kv_a_layernorm.weight"] = (latent.kv_rank,)
    key_value_dim = latent.nope_dim + latent.value_dim
    shapes["self_attn.kv_b_proj.weight"] = (heads * key_value_dim, latent.kv_rank)
    shapes["self_attn.o_proj.weight"] = (hidden, heads * latent.value_dim)
    return shapes


def _dense_shapes(config: ModelConfig) -> Shapes:
    hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
    return {
        **_linear("mlp.gate_proj", inner, hidden, bias),
        **_linear("mlp.up_proj", inner, hidden, bias),
        **_linear("mlp.down_proj", hidden, inner, bias),
    }


def _expert_shapes(config: ModelConfig) -> Shapes:
    moe, hidden = config.moe, config.hidden_size
    assert moe is not None
    mixtral = config.architecture == "MixtralForCausalLM"
    prefix = "block_sparse_moe" if mixtral else "mlp"
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    shapes: Shapes = {f"{prefix}.gate.weight": (moe.num_experts, hidden)}
    if moe.correction_bias:
        shapes["mlp.gate.e_score_correction_bias"] = (moe.num_experts,)
    for expert in range(moe.num_experts):
        shapes[f"{prefix}.experts.{expert}.{gate}.weight"] = (moe.expert_size, hidden)
        shapes[f"{prefix}.experts.{expert}.{up}.weight"] = (moe.expert_size, hidden)
        shapes[f"{prefix}.experts.{expert}.{down}.weight"] = (hidden, moe.expert_size)
    if moe.shared_size:
        shapes["mlp.shared_experts.gate_proj.weight"] = (moe.shared_size, hidden)
        shapes["mlp.shared_experts.up_proj.weight"] = (moe.shared_size, hidden)
        shapes["mlp.shared_experts.down_proj.weight"] = (hidden, moe.shared_size)
    return shapes


def _linear(name: str, rows: int, columns: int, bias: bool) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (rows, columns)}
    if bias:
        shapes[f"{name}.bias"] = (rows,)
    return shapes


def hf_config_json(config: ModelConfig) -> dict[str, Any]:
    """The content of the `config.json` that describes `config`."""
    content: dict[str, Any] = {
        "architectures": [config.architecture],
        "model_type": _MODEL_TYPES[config.architecture],
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
        case "MixtralForCausalLM":
            content |= {"sliding_window": None}
        case "Qwen3ForCausalLM" | "Qwen3MoeForCausalLM":
            content |= {"use_sliding_window": False, "attention_bias": config.attention_bias}
    if config.latent is not None:
        content |= _latent_json(config, config.latent)
    if config.moe is not None:
        content |= _moe_json(config, config.moe)
    return content


def _latent_json(config: ModelConfig, latent: LatentConfig) -> dict[str, Any]:
    return {
        "q_lora_rank": latent.query_rank,
        "kv_lora_rank": latent.kv_rank,
        "qk_nope_head_dim": latent.nope_dim,
        "qk_rope_head_dim": latent.rope_dim,
        "v_head_dim": latent.value_dim,
        "num_key_value_heads": config.num_heads,
        "num_nextn_predict_layers": config.draft_layers,
        "attention_bias": False,
    }


def _moe_json(config: ModelConfig, moe: MoEConfig) -> dict[str, Any]:
    content: dict[str, Any] = {"num_experts_per_tok": moe.experts_per_token}
    if config.architecture == "MixtralForCausalLM":
        return content | {"num_local_experts": moe.num_experts}
    content |= {"moe_intermediate_size": moe.expert_size, "norm_topk_prob": moe.normalize}
    if config.architecture == "Qwen3MoeForCausalLM":
        dense = sorted(set(range(config.num_layers)) - set(moe.layers))
        return content | {"num_experts": moe.num_experts, "mlp_only_layers": dense}
    grouped = "group_limited_greedy" if moe.num_groups > 1 else "greedy"
    return content | {
        "n_routed_experts": moe.num_experts,
        "n_shared_experts": moe.shared_size // moe.expert_size,
        "first_k_dense_replace": moe.layers[0],
        "routed_scaling_factor": moe.scaling_factor,
        "n_group": moe.num_groups,
        "topk_group": moe.top_groups,
        "scoring_func": moe.score,
        "topk_method": "noaux_tc" if moe.correction_bias else grouped,
    }


_MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MixtralForCausalLM": "mixtral",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "DeepseekV2ForCausalLM": "deepseek_v2",
    "DeepseekV3ForCausalLM": "deepseek_v3",
}


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
        if scaling.mscale or scaling.mscale_all_dim:
            content |= {"mscale": scaling.mscale, "mscale_all_dim": scaling.mscale_all_dim}
    return content
