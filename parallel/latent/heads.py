"""Cuts the heads of latent attention among ranks. Arithmetic only; does not load torch."""

from twinflow.protos.errors import ConfigError


def even_heads(num_heads: int, index: int, count: int) -> range:
    """Piece `index` of `count` equal pieces of the heads.

    Raises:
        ConfigError: they cannot be cut evenly.
    """
    if num_heads % count:
        raise ConfigError(
            f"{num_heads} heads cannot be shared by {count} ranks; use a number of ranks that "
            f"divides the heads"
        )
    each = num_heads // count
    return range(index * each, (index + 1) * each)
