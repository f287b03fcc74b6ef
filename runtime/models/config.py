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
        mscale: yarn of DeepSeek only: of cosine and sine, 0 if not stated.
        mscale_all_dim: yarn of DeepSeek only: divides that and scales the softmax of latent
            attention, 0 if not stated.
    """

    kind: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentConfig:
    """Multi-head latent attention (MLA, DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Attributes:
        query_rank: width of the compressed query; None if queries are projected directly.
        kv_rank: width of the latent that keys and values are made of.
        nope_dim: elements of a query and key head without position.
        rope_dim: elements with rotary position; one key for all heads.
        value_dim: elements of a value head.
        norm_eps: epsilon of the norms on the latents, which checkpoints do not state.
    """

    query_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """A mixture of experts in place of the MLP of some layers.

    Attributes:
        layers: indices of the layers that have it.
        num_experts: routed experts.
        experts_per_token: how many a token is sent to.
        expert_size: intermediate size of a routed expert.
        shared_size: intermediate size of all shared experts together; 0 for none.
        score: what router logits become: `softmax` over the experts, or `sigmoid` of each.
        num_groups: groups of experts, 1 for no grouping.
        top_groups: groups that a token may choose from.
        group_score: a group's score is that of its best expert (`max`, DeepSeek-V2) or of its two
            best ones (`top2`, DeepSeek-V3).
        correction_bias: a bias per expert decides the choice, and only that (DeepSeek-V3).
        normalize: the weights of the chosen experts are scaled to sum to one.
        scaling_factor: on the weights of the chosen experts.
    """

    layers: tuple[int, ...]
    num_experts: int
    experts_per_token: int
    expert_size: int
    shared_size: int = 0
    score: Literal["softmax", "sigmoid"] = "softmax"
    num_groups: int = 1
    top_groups: int = 1
    group_score: Literal["max", "top2"] = "max"
    correction_bias: bool = False
    normalize: bool = True
    scaling_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder: of the Llama family, or with latent attention, or with experts.

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
        latent: latent attention instead of key/value heads; `num_kv_heads` is then 1 and
            `head_dim` the rotary part, which `rope_scaling` refers to.
        moe: experts in some layers.
        draft_layers: layers of the checkpoint behind `num_layers` that predict further tokens
            (DeepSeek-V3's MTP); they are not loaded.
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
    latent: LatentConfig | None = None
    moe: MoEConfig | None = None
    draft_layers: int = 0
    dtype: str = "float32"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
