"""The tensors of a GGUF file under their Hugging Face names, order and dtype.

llama.cpp rotates the pairs (2i, 2i+1) of a head of the `llama` family, Hugging Face the pairs
(i, i + d/2), so llama.cpp's converter reorders the rows of q and k. Here the order is restored:

    GGUF rows of a head      0 d/2 1 d/2+1 2 d/2+2 ...     (numbers are Hugging Face rows)
    Hugging Face rows        0 1 2 ... d/2 d/2+1 d/2+2 ...
"""

import math
import re
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.gguf_import.config import EMBEDDING, OUTPUT, Family
from twinflow.runtime.checkpoint.gguf_import.reader import GgufFile, GgufTensor
from twinflow.runtime.checkpoint.gguf_import.rope import ROPE_FACTORS
from twinflow.runtime.checkpoint.json_file import shown
from twinflow.runtime.models.config import ModelConfig

_TOP = {
    EMBEDDING: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    OUTPUT: "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d{1,6})\.([a-z_]+)\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What becomes of one GGUF tensor.

    Attributes:
        name: Hugging Face name.
        source: the tensor in the file.
        heads: heads whose rows are interleaved; None if the rows stay as they are.
    """

    name: str
    source: GgufTensor
    heads: int | None

    def size(self, dtype: torch.dtype) -> int:
        """Bytes of the result in `dtype`."""
        return math.prod(self.source.shape) * dtype.itemsize

    def run(self, dtype: torch.dtype) -> Tensor:
        """Dequantise, restore the order of the rows, round to `dtype`.

        Raises:
            CheckpointError: the quantisation is not supported, or a value is not finite in
                `dtype`.
        """
        values = self.source.dequantize()
        if self.heads is not None:
            values = restore_rows(values, self.heads)
        tensor = torch.from_numpy(values).to(dtype)
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{self.source.path}: tensor {shown(self.source.name)}: has values that are not "
                f"finite in {dtype}"
            )
        return tensor


def plan_tensors(file: GgufFile, family: Family, config: ModelConfig) -> list[Conversion]:
    """One conversion for each tensor of the file, in the file's order.

    Raises:
        CheckpointError: a tensor has no place in the model.
    """
    plan = []
    for tensor in file.tensors.values():
        if tensor.name == ROPE_FACTORS:
            continue
        name = _hugging_face_name(tensor.name)
        if name is None:
            raise CheckpointError(
                f"{file.path}: tensor {shown(tensor.name)} has no place in {config.architecture}"
            )
        plan.append(Conversion(name, tensor, _interleaved_heads(name, family, config)))
    return plan


def restore_rows(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Bring the rows of q or k from llama.cpp's order into Hugging Face's.

    Args:
        values: weight [heads * d, hidden] or bias [heads * d].
        heads: query heads for q, key/value heads for k.
    """
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _hugging_face_name(name: str) -> str | None:
    match = _LAYER_TENSOR.fullmatch(name)
    if match is None:
        return _TOP.get(name)
    layer, part, kind = match.groups()
    return f"model.layers.{layer}.{_LAYER[part]}.{kind}" if part in _LAYER else None


def _interleaved_heads(name: str, family: Family, config: ModelConfig) -> int | None:
    if not family.interleaved:
        return None
    if ".q_proj." in name:
        return config.num_heads
    return config.num_kv_heads if ".k_proj." in name else None
