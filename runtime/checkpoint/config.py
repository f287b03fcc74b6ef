"""`config.json` and `generation_config.json` of a Hugging Face model directory.

Both spellings are read: transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and
transformers 5 (`rope_parameters`, `dtype`). Whatever would make the model compute something that
`ModelConfig` cannot say is refused, never ignored: remote code, most quantised weights, windowed
attention, other activations. Sizes are bounded here, before anything is allocated.

Code of a model (`auto_map`) is never imported. DeepSeek and Kimi-K2 directories name such code
beside an architecture that twinflow itself computes; there the key is ignored, and a line in the
log says so. Anywhere else it is a reason to refuse.
"""

from dataclasses import dataclass
from pathlib import Path

import structlog

from twinflow.runtime.checkpoint.directory import ModelDirectory
from twinflow.runtime.checkpoint.experts import (
    ReadExperts,
    read_deepseek_v2_experts,
    read_deepseek_v3_experts,
    read_mixtral_experts,
    read_qwen_experts,
)
from twinflow.runtime.checkpoint.json_file import JsonObject, read_json
from twinflow.runtime.checkpoint.latent import read_latent
from twinflow.runtime.checkpoint.quantization import read_block_size
from twinflow.runtime.checkpoint.rope import read_rope
from twinflow.runtime.models.config import LatentConfig, ModelConfig, RopeScaling

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

_MAX_BYTES = 4 << 20
_MAX_LAYERS = 1 << 10
_MAX_DRAFT_LAYERS = 1 << 6
_MAX_WIDTH = 1 << 20
_MAX_HEADS = 1 << 12
_MAX_HEAD_DIM = 1 << 10
_MAX_VOCABULARY = 1 << 24
_MAX_POSITION = 1 << 31
_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class _Architecture:
    """What `config.json` leaves to the model class.

    Attributes:
        head_dim: default; None means hidden_size / num_attention_heads.
        kv_heads: default number of key/value heads; None means as many as query heads.
        window: default of `sliding_window`.
        window_switch: `sliding_window` counts only if `use_sliding_window` is true.
        qkv_bias: None means that `attention_bias` decides, for the output projection too.
        mlp_bias: `mlp_bias` is a key of this architecture.
        qk_norm: norms on the heads of q and k.
        rope_theta: default of the base of the rotary frequencies.
        latent: latent attention in place of key/value heads.
        experts: reads the experts; None if there are none.
        own_code: directories of this architecture name code of their own, which is not needed.
    """

    head_dim: int | None = None
    kv_heads: int | None = None
    window: int | None = None
    window_switch: bool = False
    qkv_bias: bool | None = None
    mlp_bias: bool = False
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    latent: bool = False
    experts: ReadExperts | None = None
    own_code: bool = False


_DEEPSEEK_V3 = _Architecture(
    qkv_bias=False, latent=True, experts=read_deepseek_v3_experts, own_code=True
)
_ARCHITECTURES = {
    "LlamaForCausalLM": _Architecture(mlp_bias=True),
    "MistralForCausalLM": _Architecture(kv_heads=8, window=4096, qkv_bias=False),
    "Qwen2ForCausalLM": _Architecture(kv_heads=32, window_switch=True, qkv_bias=True),
    "Qwen3ForCausalLM": _Architecture(head_dim=128, kv_heads=32, window_switch=True, qk_norm=True),
    "MixtralForCausalLM": _Architecture(
        kv_heads=8, qkv_bias=False, rope_theta=1e6, experts=read_mixtral_experts
    ),
    "Qwen3MoeForCausalLM": _Architecture(
        kv_heads=4, window_switch=True, qk_norm=True, experts=read_qwen_experts
    ),
    "DeepseekV2ForCausalLM": _Architecture(
        qkv_bias=False, latent=True, experts=read_deepseek_v2_experts, own_code=True
    ),
    "DeepseekV3ForCausalLM": _DEEPSEEK_V3,
    "KimiK2ForCausalLM": _DEEPSEEK_V3,
}


def load_model_config(directory: Path) -> ModelConfig:
    """Read the shape of the model in `directory`.

    The tokens that end a sequence come from `generation_config.json` if it names any, else from
    `config.json`; that is where transformers' `generate` looks.

    Raises:
        CheckpointError: a file is missing, damaged, or describes a model that is not supported.
    """
    folder = ModelDirectory.open(directory)
    path = folder.require(CONFIG, "expected a Hugging Face model directory")
    config = read_json(path, _MAX_BYTES)
    name = _architecture_name(config)
    architecture = _ARCHITECTURES[name]
    _refuse_unsupported(config, architecture)
    max_position = config.required_integer("max_position_embeddings", 1, _MAX_POSITION)
    _refuse_window(config, architecture, max_position)
    num_layers = config.required_integer("num_hidden_layers", 1, _MAX_LAYERS)
    latent = read_latent(config) if architecture.latent else None
    heads, kv_heads, head_dim = _heads(config, architecture, latent)
    theta, scaling = read_rope(config, max_position, architecture.rope_theta)
    vocab_size = config.required_integer("vocab_size", 1, _MAX_VOCABULARY)
    bias = config.boolean("attention_bias") or False
    return ModelConfig(
        architecture=name,
        vocab_size=vocab_size,
        hidden_size=config.required_integer("hidden_size", 1, _MAX_WIDTH),
        intermediate_size=config.required_integer("intermediate_size", 1, _MAX_WIDTH),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=_longest(max_position, scaling),
        rms_norm_eps=config.number("rms_norm_eps", 1e-12, 1.0) or 1e-6,
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=config.boolean("tie_word_embeddings") or False,
        attention_bias=bias if architecture.qkv_bias is None else architecture.qkv_bias,
        attention_output_bias=bias if architecture.qkv_bias is None else False,
        mlp_bias=architecture.mlp_bias and (config.boolean("mlp_bias") or False),
        qk_norm=architecture.qk_norm,
        latent=latent,
        moe=architecture.experts(config, num_layers) if architecture.experts else None,
        draft_layers=_draft_layers(config),
        dtype=_dtype(config),
        bos_token_id=config.integer("bos_token_id", 0, vocab_size - 1),
        eos_token_ids=_eos_token_ids(folder, config, vocab_size),
    )


def _architecture_name(config: JsonObject) -> str:
    names = config.strings("architectures")
    if names is None or len(names) != 1 or names[0] not in _ARCHITECTURES:
        raise config.error("architectures", f"one of {', '.join(_ARCHITECTURES)}")
    return names[0]


def _refuse_unsupported(config: JsonObject, architecture: _Architecture) -> None:
    if "auto_map" in config:
        if not architecture.own_code:
            raise config.error("auto_map", "nothing: code of a model is never imported")
        structlog.get_logger().info("the model's own code is not used", file=str(config.file))
    read_block_size(config)
    if config.text("hidden_act") not in (None, "silu"):
        raise config.error("hidden_act", "'silu'")


def _refuse_window(config: JsonObject, architecture: _Architecture, max_position: int) -> None:
    """Attention sees the whole context or the checkpoint is refused."""
    kinds = config.strings("layer_types") or []
    if any(kind != "full_attention" for kind in kinds):
        raise config.error("layer_types", "'full_attention' for every layer")
    window = config.integer("sliding_window", 1, _MAX_POSITION)
    if "sliding_window" not in config.values:
        window = architecture.window
    if architecture.window_switch and not config.boolean("use_sliding_window"):
        return
    if window is not None and window < max_position:
        raise config.error(
            "sliding_window",
            f"null or at least max_position_embeddings ({max_position}): windowed attention is "
            f"not supported",
        )


def _heads(
    config: JsonObject, architecture: _Architecture, latent: LatentConfig | None
) -> tuple[int, int, int]:
    """Query heads, key/value heads and the size of a head."""
    heads = config.required_integer("num_attention_heads", 1, _MAX_HEADS)
    if latent is not None:
        return heads, 1, latent.rope_dim
    kv_heads = config.integer("num_key_value_heads", 1, _MAX_HEADS)
    if kv_heads is None:
        absent = "num_key_value_heads" not in config.values
        kv_heads = (architecture.kv_heads if absent else None) or heads
    if heads % kv_heads:
        raise config.error(
            "num_key_value_heads", f"a divisor of num_attention_heads ({heads}), or nothing"
        )
    head_dim = config.integer("head_dim", 1, _MAX_HEAD_DIM) or architecture.head_dim
    if head_dim is None:
        hidden = config.required_integer("hidden_size", 1, _MAX_WIDTH)
        if hidden % heads:
            raise config.error("hidden_size", f"a multiple of num_attention_heads ({heads})")
        head_dim = hidden // heads
    if head_dim % 2:
        raise config.error("head_dim", f"an even size of a head (it is {head_dim})")
    return heads, kv_heads, head_dim


def _longest(max_position: int, scaling: RopeScaling | None) -> int:
    """The context after scaling.

    YaRN configs state the context before the scaling (Qwen) or after it (DeepSeek): the larger of
    the two readings is right. For the other kinds the number is taken as it stands.
    """
    if scaling is None or scaling.kind != "yarn" or scaling.original_max_position is None:
        return max_position
    return max(max_position, int(scaling.original_max_position * scaling.factor))


def _draft_layers(config: JsonObject) -> int:
    for key in ("num_nextn_predict_layers", "num_mtp_layers"):
        count = config.integer(key, 0, _MAX_DRAFT_LAYERS)
        if count is not None:
            return count
    return 0


def _dtype(config: JsonObject) -> str:
    key = "dtype" if "dtype" in config else "torch_dtype"
    dtype = (config.text(key) or "float32").removeprefix("torch.")
    if dtype not in _DTYPES:
        raise config.error(key, f"one of {', '.join(_DTYPES)}")
    return dtype


def _eos_token_ids(folder: ModelDirectory, config: JsonObject, vocab_size: int) -> tuple[int, ...]:
    sources = [config]
    generation = folder.find(GENERATION_CONFIG)
    if generation is not None:
        sources.insert(0, read_json(generation, _MAX_BYTES))
    for source in sources:
        ids = _token_ids(source, "eos_token_id", vocab_size)
        if ids:
            return ids
    raise config.error("eos_token_id", "the id of a token that ends a sequence, or a list of them")


def _token_ids(source: JsonObject, key: str, vocab_size: int) -> tuple[int, ...]:
    value = source.get(key)
    if not isinstance(value, list):
        single = source.integer(key, 0, vocab_size - 1)
        return () if single is None else (single,)
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < vocab_size:
            raise source.error(key, f"token ids from 0 to {vocab_size - 1}")
    return tuple(dict.fromkeys(value))
