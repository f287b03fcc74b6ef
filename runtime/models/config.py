"""The shape of a model, as read from a checkpoint's `config.json`.

Values only: reading and checking the file is `twinflow.runtime.checkpoint`'s, computing with the
values is the model's.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Rotary position embedding beyond the plain one (Hugging Face's `rope_scaling`).

    Attributes:
        kind: `linear`, `dynamic`, `llama3` or `yarn`.
        factor: by how much the context is stretched.
        low_freq_factor: llama3 only.
        high_freq_factor: llama3 only.
        original_max_position: context the model was first trained for (llama3, yarn, dynamic).
        attention_factor: yarn only; None means 0.1 ln(factor) + 1.
        beta_fast: yarn only.
        beta_slow: yarn only.
    """

    kind: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A dense decoder of the Llama family.

    Attributes:
        architecture: the class name in `config.json`, such as `LlamaForCausalLM`.
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key/value heads; divides `num_heads`.
        head_dim: elements of one head.
        max_position: longest sequence the model was trained or scaled for.
        rms_norm_eps: epsilon of every RMS norm.
        rope_theta: base of the rotary frequencies.
        rope_scaling: None for plain rotary embedding.
        tie_word_embeddings: the output head is the embedding.
        attention_bias: biases on the q, k and v projections.
        attention_output_bias: bias on the output projection.
        mlp_bias: biases in the MLP.
        qk_norm: RMS norm over each head of q and k before the rotary embedding (Qwen3).
        dtype: dtype of the checkpoint's weights, such as `bfloat16`.
        bos_token_id: None if the model has none.
        eos_token_ids: tokens that end a sequence; at least one.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dtype: str = "float32"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
