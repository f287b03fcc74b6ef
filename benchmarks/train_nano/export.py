"""Writes a trained model as a directory that transformers and twinflow load.

Weights become bfloat16 and get the names of the Hugging Face classes. Measures nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.train_nano.dense_model import DenseShape
from benchmarks.train_nano.latent_model import LatentShape
from benchmarks.train_nano.layers import INIT_STD, NORM_EPS
from benchmarks.train_nano.vocabulary import END_OF_TEXT, END_OF_TEXT_ID

WEIGHTS = "model.safetensors"
# The models know code only: what a person says becomes a comment, which code may follow.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ message.content }}\n"
    "{% else %}# {{ message.content | replace('\n', '\n# ') }}\n"
    "{% endif %}{% endfor %}"
)


def rounded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as bfloat16 keeps them, still float32: what the exported model computes with."""
    return {name: weight.bfloat16().float() for name, weight in weights.items()}


def checkpoint_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names that Hugging Face gives them, one tensor per expert."""
    named = {}
    for name, weight in weights.items():
        owner, _, projection = name.rpartition(".")
        if projection.endswith("_proj"):  # all experts of a layer: [experts, outputs, inputs]
            for expert, part in enumerate(weight):
                named[f"model.{owner}.experts.{expert}.{projection}.weight"] = part
        else:
            named[f"model.{name}"] = weight
    return named


def write_model(
    directory: Path, shape: LatentShape | DenseShape, weights: dict[str, Tensor], tokenizer: Path
) -> None:
    """A complete model directory.

    Args:
        directory: made if it is missing; files in it are replaced.
        shape: of the model.
        weights: by the names of the training modules.
        tokenizer: the `tokenizer.json` to go with it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    named = checkpoint_names(weights)
    tensors = {name: tensor.bfloat16().contiguous() for name, tensor in named.items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    config = _latent_config(shape) if isinstance(shape, LatentShape) else _dense_config(shape)
    _write_json(directory / "config.json", config | _common_config(shape))
    ends = {"bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID}
    _write_json(directory / "generation_config.json", ends)
    Tokenizer.from_file(str(tokenizer)).save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(shape.positions))


def _latent_config(shape: LatentShape) -> dict[str, object]:
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "intermediate_size": shape.dense_size,
        "moe_intermediate_size": shape.expert_size,
        "num_key_value_heads": shape.heads,
        "q_lora_rank": None,
        "kv_lora_rank": shape.latent,
        "qk_nope_head_dim": shape.nope,
        "qk_rope_head_dim": shape.rope,
        "v_head_dim": shape.value,
        "n_routed_experts": shape.experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": shape.top,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": shape.routed_scale,
    }


def _dense_config(shape: DenseShape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "intermediate_size": shape.dense_size,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "mlp_bias": False,
    }


def _common_config(shape: LatentShape | DenseShape) -> dict[str, object]:
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.positions,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": NORM_EPS,
        "initializer_range": INIT_STD,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "dtype": str(torch.bfloat16).removeprefix("torch."),
    }


def _tokenizer_config(positions: int) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": positions,
        "chat_template": CHAT_TEMPLATE,
    }


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
