"""Attention kernels by name."""

from collections.abc import Callable

from twinflow.protos.errors import ConfigError
from twinflow.runtime.attention.base import HeadKernel
from twinflow.runtime.attention.tiled import TiledAttention
from twinflow.runtime.kv.cache import KVCache

AttentionBuilder = Callable[[KVCache, int], HeadKernel]

_KERNELS: dict[str, AttentionBuilder] = {}


def register_attention(name: str, build: AttentionBuilder) -> None:
    """Make a kernel available under a name; a name can be taken only once."""
    if name in _KERNELS:
        raise ValueError(f"an attention kernel named {name!r} is already registered")
    _KERNELS[name] = build


def create_attention(name: str, cache: KVCache, num_heads: int) -> HeadKernel:
    """Build the kernel with this name for a cache and a number of query heads.

    Raises:
        ConfigError: there is none.
    """
    build = _KERNELS.get(name)
    if build is None:
        raise ConfigError(f"attention kernel {name!r}: unknown; choose one of {sorted(_KERNELS)}")
    return build(cache, num_heads)


register_attention("tiled", TiledAttention)
