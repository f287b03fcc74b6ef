"""Bounds that follow from a checkpoint: the context length and the memory.

Decides only; measuring the memory and reading the weights are done elsewhere.
"""

from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.runtime.models.config import ModelConfig

_GIB = 1 << 30


def resolve_max_model_len(requested: int | None, config: ModelConfig) -> int:
    """The longest sequence to serve: `requested`, or all that the model was made for.

    Longer than the model was made for is refused: the positions beyond were never trained.

    Raises:
        ConfigError: `requested` is not in [1, config.max_position].
    """
    if requested is None:
        return config.max_position
    if not 1 <= requested <= config.max_position:
        raise ConfigError(
            f"--max-model-len: found {requested}, expected 1 to {config.max_position} "
            f"(the model's max_position_embeddings with its rope scaling)"
        )
    return requested


def check_memory(needed: int, available: int, what: str = "the weights") -> None:
    """Refuse to start what cannot fit.

    Args:
        needed: bytes that `what` takes up.
        available: bytes that are free for it.
        what: names the use, for the message.

    Raises:
        CheckpointError: `needed` exceeds `available`; names both.
    """
    if needed > available:
        raise CheckpointError(
            f"not enough memory for {what}: {needed / _GIB:.2f} GiB needed, "
            f"{available / _GIB:.2f} GiB available; use a smaller model, --dtype bfloat16, "
            f"less --kv-cache-memory, fewer workers or a machine with more memory"
        )
