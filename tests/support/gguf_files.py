"""Tiny GGUF files, written the way llama.cpp's converter writes them.

The order of the rows of q and k is written out here as llama.cpp's converter has it (`permute` in
convert_hf_to_gguf.py), apart from the code under test that undoes it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from numpy.typing import NDArray
from tests.support.checkpoints import MERGES, REMOVED, SPECIAL_TOKENS, byte_vocabulary, small_config
from tests.support.tiny_models import tiny_state_dict
from torch import Tensor

from twinflow.runtime.models.config import ModelConfig

CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
FAMILIES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass
class GgufModel:
    """A model to write as GGUF.

    Attributes:
        family: llama.cpp's name of the family.
        config: its shape; sizes are multiples of 32, as quantisation wants them.
        state: weights under their Hugging Face names, as Hugging Face orders them.
        kinds: quantisation by GGUF tensor name; F32 where absent.
        changes: metadata to set, or to take away with `REMOVED`.
        extra: further tensors under their GGUF names.
    """

    family: str = "llama"
    config: ModelConfig = field(default_factory=lambda: gguf_config())
    state: dict[str, Tensor] = field(default_factory=dict)
    kinds: dict[str, GGMLQuantizationType] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.state:
            self.state = tiny_state_dict(self.config)

    def write(self, path: Path) -> Path:
        """Write the file and return its path."""
        writer = GGUFWriter(path, self.family)
        for key, value in (metadata(self.family, self.config) | self.changes).items():
            if value is not REMOVED:
                _add(writer, key, value)
        for name, tensor in self.state.items():
            values, gguf_name = self.stored(name, tensor), gguf_tensor_name(name)
            kind = self.kinds.get(gguf_name, GGMLQuantizationType.F32)
            writer.add_tensor(gguf_name, quants.quantize(values, kind), raw_dtype=kind)
        for name, values in self.extra.items():
            writer.add_tensor(name, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def stored(self, name: str, tensor: Tensor) -> NDArray[np.float32]:
        """The values as the file has them before quantisation."""
        values = tensor.to(torch.float32).numpy()
        if self.family == "llama" and ".q_proj." in name:
            return permute(values, self.config.num_heads)
        if self.family == "llama" and ".k_proj." in name:
            return permute(values, self.config.num_kv_heads)
        return values

    def expected(self, name: str) -> Tensor:
        """What quantisation leaves of a tensor, in Hugging Face's order of rows."""
        kind = self.kinds.get(gguf_tensor_name(name), GGMLQuantizationType.F32)
        # Blocks lie inside a row, so that quantising and reordering rows commute.
        values = quants.dequantize(quants.quantize(self.state[name].float().numpy(), kind), kind)
        return torch.from_numpy(np.array(values))


def gguf_config(family: str = "llama", **changes: Any) -> ModelConfig:
    """A model whose rows can be quantised: every width is a multiple of 32."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "rms_norm_eps": 1e-5}
    return small_config(FAMILIES[family], **(sizes | {"rope_theta": 100_000.0} | changes))


def permute(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of each head from (first half, second half) to alternating ones."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def gguf_tensor_name(name: str) -> str:
    """llama.cpp's name of a Hugging Face tensor."""
    for hugging_face, short in sorted(_NAMES.items(), key=lambda pair: -len(pair[0])):
        name = name.replace(hugging_face, short)
    return name


def metadata(family: str, config: ModelConfig) -> dict[str, Any]:
    """The key/value pairs that describe the model and `byte_tokenizer`'s vocabulary."""
    tokens = byte_vocabulary()
    control = [gguf.TokenType.CONTROL] * len(SPECIAL_TOKENS)
    normal = [gguf.TokenType.NORMAL] * (len(tokens) - len(control))
    return {
        f"{family}.block_count": config.num_layers,
        f"{family}.context_length": config.max_position,
        f"{family}.embedding_length": config.hidden_size,
        f"{family}.feed_forward_length": config.intermediate_size,
        f"{family}.attention.head_count": config.num_heads,
        f"{family}.attention.head_count_kv": config.num_kv_heads,
        f"{family}.attention.key_length": config.head_dim,
        f"{family}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{family}.rope.freq_base": config.rope_theta,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in control + normal],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in MERGES],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)
        case _:
            raise TypeError(f"{key}: cannot write {type(value).__name__}")
