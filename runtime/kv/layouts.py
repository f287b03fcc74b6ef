"""Which KV layout a model has, and which parts of it a rank holds."""

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.parallel.ranks.base import RankGroup
from twinflow.protos.errors import ConfigError
from twinflow.runtime.models.config import ModelConfig


def model_layout(
    config: ModelConfig,
    block_size: int,
    dtype: str,
    parts: int = 1,
    scheme: LatentScheme | None = None,
) -> KVLayout:
    """The layout of a whole model.

    Args:
        config: of the model.
        block_size: token slots of a block.
        dtype: name of the dtype of the KV.
        parts: parts that a deployment cuts the KV heads into: as many as the larger one of its
            pools has ranks in a worker, or as there are KV heads if these are fewer.
        scheme: of the deployment, if the model has latent attention; None for the plain one.

    Raises:
        ConfigError: heads or latents cannot be cut into so many parts.
    """
    if config.latent is not None:
        scheme = scheme or LatentScheme()
        latents = scheme.parts(config.latent.kv_rank, config.latent.rope_dim)
        return KVLayout(config.num_layers, block_size, dtype, latents, scheme.meaning)
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


def rank_layout(
    layout: KVLayout, ranks: RankGroup, sharing: LatentSharing | None = None
) -> KVLayout:
    """The parts that one rank holds: its share, or one that it has in common with others.

    Args:
        layout: of the whole model.
        ranks: of the worker.
        sharing: the rank's part of latent attention, if the model has it.

    Raises:
        ConfigError: ranks would have to cut parts.
    """
    if sharing is not None:
        return layout.only(sharing.part_names())
    parts, count = len(layout.parts), ranks.size
    if parts % count and count % parts:
        raise ConfigError(f"{parts} KV parts cannot be shared by {count} ranks")
    first = ranks.rank * parts // count
    return layout.only([part.name for part in layout.parts[first : first + max(1, parts // count)]])
