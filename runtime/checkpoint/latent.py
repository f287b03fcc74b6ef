"""The latent attention that `config.json` describes (DeepSeek-V2, -V3, Kimi-K2)."""

from twinflow.runtime.checkpoint.json_file import JsonObject
from twinflow.runtime.models.config import LatentConfig

_MAX_RANK = 1 << 16
_MAX_HEAD_DIM = 1 << 10


def read_latent(config: JsonObject) -> LatentConfig:
    """Ranks and head sizes.

    Raises:
        CheckpointError: a key is absent or unusable, or asks for what is not supported.
    """
    for key in ("attention_bias", "mlp_bias"):
        if config.boolean(key):
            raise config.error(key, "false: biases are not supported with latent attention")
    if config.boolean("rope_interleave") is False:
        raise config.error("rope_interleave", "true: rotary pairs that lie side by side")
    rope_dim = config.required_integer("qk_rope_head_dim", 2, _MAX_HEAD_DIM)
    if rope_dim % 2:
        raise config.error("qk_rope_head_dim", "an even number")
    return LatentConfig(
        query_rank=config.integer("q_lora_rank", 1, _MAX_RANK),
        kv_rank=config.required_integer("kv_lora_rank", 1, _MAX_RANK),
        nope_dim=config.required_integer("qk_nope_head_dim", 1, _MAX_HEAD_DIM),
        rope_dim=rope_dim,
        value_dim=config.required_integer("v_head_dim", 1, _MAX_HEAD_DIM),
    )
