"""Which numbers of ranks can share the heads of a model. Arithmetic only; does not load torch."""

from twinflow.parallel.latent.heads import even_heads
from twinflow.protos.errors import ConfigError
from twinflow.runtime.models.config import ModelConfig


def check_model_heads(model: ModelConfig, count: int) -> None:
    """Refuse a number of ranks that cannot share a model's heads.

    Raises:
        ConfigError: they cannot; says which numbers can.
    """
    if model.latent is None:
        check_heads(model.num_heads, model.num_kv_heads, count)
    else:
        even_heads(model.num_heads, 0, count)


def check_heads(num_heads: int, num_kv_heads: int, count: int) -> None:
    """Refuse a number of ranks that cannot share query heads and key/value heads.

    Raises:
        ConfigError: the heads cannot be shared evenly.
    """
    even = num_kv_heads % count == 0 or count % num_kv_heads == 0
    if num_heads % count or not even:
        raise ConfigError(
            f"{num_heads} query heads and {num_kv_heads} key/value heads cannot be shared by "
            f"{count} ranks; use a number of ranks that divides the query heads, and the "
            f"key/value heads or is a multiple of them"
        )
