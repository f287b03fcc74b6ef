"""Which KV layout a model has, and which parts of it a rank holds."""

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.ranks.base import RankGroup
from twinflow.protos.errors import ConfigError
from twinflow.runtime.models.config import ModelConfig


def model_layout(config: ModelConfig, block_size: int, dtype: str, parts: int = 1) -> KVLayout:
    """The layout of a whole model.

    Args:
        config: of the model.
        block_size: token slots of a block.
        dtype: name of the dtype of the KV.
        parts: parts that a deployment cuts the KV heads into: as many as the larger one of its
            pools has ranks in a worker, or as there are KV heads if these are fewer.

    Raises:
        ConfigError: the heads cannot be cut into so many parts.
    """
    if config.num_kv_heads % parts:
        raise ConfigError(
            f"{config.num_kv_heads} key/value heads cannot be cut into {parts} parts; use "
            f"numbers of ranks that divide the key/value heads or are multiples of them"
        )
    return KVLayout.of_heads(
        num_layers=config.num_layers,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        block_size=block_size,
        dtype=dtype,
        parts=parts,
    )


def rank_layout(layout: KVLayout, ranks: RankGroup) -> KVLayout:
    """The parts that one rank holds: its share, or one that it has in common with others.

    Raises:
        ConfigError: ranks would have to cut parts.
    """
    parts, count = len(layout.parts), ranks.size
    if parts % count and count % parts:
        raise ConfigError(f"{parts} KV parts cannot be shared by {count} ranks")
    first = ranks.rank * parts // count
    return layout.only([part.name for part in layout.parts[first : first + max(1, parts // count)]])
