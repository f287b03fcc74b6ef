"""`config.json` and `generation_config.json` out of GGUF metadata.

Writes transformers 4's spelling, which transformers 5 reads too. Values are checked where they
are needed here; everything else is checked when the importer loads the result.
"""

from dataclasses import dataclass
from typing import Literal

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.gguf_import.reader import GgufFile
from twinflow.runtime.checkpoint.gguf_import.rope import rope_scaling

Dtype = Literal["float32", "bfloat16", "float16"]
Json = dict[str, object]

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"

_END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")
_BIG = 1 << 31


@dataclass(frozen=True, slots=True)
class Family:
    """One of llama.cpp's model families.

    Attributes:
        architecture: class name in transformers.
        model_type: transformers' name of the family.
        interleaved: the rows of q and k are stored in the order of interleaved rotation.
    """

    architecture: str
    model_type: str
    interleaved: bool


# Mistral files say `llama`: the two compute the same.
_FAMILIES = {
    "llama": Family("LlamaForCausalLM", "llama", interleaved=True),
    "qwen2": Family("Qwen2ForCausalLM", "qwen2", interleaved=False),
    "qwen3": Family("Qwen3ForCausalLM", "qwen3", interleaved=False),
}


def family_of(file: GgufFile) -> Family:
    """The family of the model in `file`.

    Raises:
        CheckpointError: the family is not supported.
    """
    name = file.architecture
    if name not in _FAMILIES:
        raise file.metadata.error("general.architecture", f"one of {', '.join(_FAMILIES)}")
    return _FAMILIES[name]


def model_config(file: GgufFile, dtype: Dtype) -> Json:
    """The content of `config.json`.

    Raises:
        CheckpointError: a key is missing, or the model is of a kind that is not supported.
    """
    family, keys = family_of(file), _Keys(file)
    if keys.optional("expert_count", 0):
        raise keys.error("expert_count", "0: mixtures of experts are not supported")
    if keys.optional("attention.sliding_window", 0):
        raise keys.error("attention.sliding_window", "nothing: windows are not supported")
    heads = keys.required("attention.head_count")
    hidden = keys.required("embedding_length")
    head_dim = keys.optional("attention.key_length", hidden // heads)
    if keys.optional("rope.dimension_count", head_dim) != head_dim:
        raise keys.error("rope.dimension_count", f"{head_dim}: every element of a head rotates")
    if keys.optional("attention.value_length", head_dim) != head_dim:
        raise keys.error("attention.value_length", f"{head_dim}, as attention.key_length")
    theta = keys.number("rope.freq_base", 10_000.0)
    config: Json = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": _vocab_size(file),
        "hidden_size": hidden,
        "intermediate_size": keys.required("feed_forward_length"),
        "num_hidden_layers": keys.required("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.optional("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": keys.required("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": theta,
        "rope_scaling": rope_scaling(file, theta, head_dim),
        "tie_word_embeddings": OUTPUT not in file.tensors,
        "torch_dtype": dtype,
    }
    return config | _biases(file, family) | token_ids(file)


def generation_config(file: GgufFile) -> Json:
    """The content of `generation_config.json`."""
    return token_ids(file)


def token_ids(file: GgufFile) -> Json:
    """Special tokens by the names that both configs use; every end of a sequence is listed.

    Raises:
        CheckpointError: no token ends a sequence.
    """
    metadata, ids = file.metadata, Json()
    for key, source in (("bos_token_id", "bos_token_id"), ("pad_token_id", "padding_token_id")):
        value = metadata.integer(f"tokenizer.ggml.{source}", 0, _BIG)
        if value is not None:
            ids[key] = value
    ends = [metadata.integer(f"tokenizer.ggml.{key}", 0, _BIG) for key in _END_TOKENS]
    known = list(dict.fromkeys(value for value in ends if value is not None))
    if not known:
        raise metadata.error("tokenizer.ggml.eos_token_id", "the token that ends a sequence")
    ids["eos_token_id"] = known[0] if len(known) == 1 else known
    return ids


class _Keys:
    """The keys of the file's family, without the prefix."""

    def __init__(self, file: GgufFile) -> None:
        self._metadata = file.metadata
        self._prefix = file.architecture

    def optional(self, key: str, default: int) -> int:
        value = self._metadata.integer(f"{self._prefix}.{key}", 0, _BIG)
        return default if value is None else value

    def required(self, key: str) -> int:
        return self._metadata.required_integer(f"{self._prefix}.{key}", 1, _BIG)

    def number(self, key: str, default: float) -> float:
        """A number; float32 in the file, so it is shown with the digits that float32 has."""
        value = self._metadata.number(f"{self._prefix}.{key}", 0.0, 1e12)
        return default if value is None else float(f"{value:.7g}")

    def error(self, key: str, expected: str) -> CheckpointError:
        return self._metadata.error(f"{self._prefix}.{key}", expected)


def _vocab_size(file: GgufFile) -> int:
    embedding = file.tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{file.path}: tensor {EMBEDDING!r}: expected two dimensions")
    return embedding.shape[0]


def _biases(file: GgufFile, family: Family) -> Json:
    """Llama and Qwen3 say in config.json whether they have biases; Qwen2 always has its three."""
    if family.model_type == "qwen2":
        return {}
    return {
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
    }
