"""Kernels of latent attention by name."""

from collections.abc import Callable
from importlib.util import find_spec

import torch

from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.protos.errors import ConfigError
from twinflow.runtime.attention.latent.base import LatentHeads, LatentKernel
from twinflow.runtime.attention.latent.tiled import TiledLatentAttention
from twinflow.runtime.kv.cache import KVCache

LatentKernelBuilder = Callable[[KVCache, LatentHeads, LatentSharing], LatentKernel]

_KERNELS: dict[str, LatentKernelBuilder] = {}


def register_latent_attention(name: str, build: LatentKernelBuilder) -> None:
    """Make a kernel available under a name; a name can be taken only once."""
    if name in _KERNELS:
        raise ValueError(f"a kernel of latent attention named {name!r} is already registered")
    _KERNELS[name] = build


def create_latent_attention(
    name: str, cache: KVCache, heads: LatentHeads, sharing: LatentSharing
) -> LatentKernel:
    """Build the kernel with this name for one rank.

    Raises:
        ConfigError: there is none.
    """
    build = _KERNELS.get(name)
    if build is None:
        raise ConfigError(
            f"latent attention kernel {name!r}: unknown; choose one of {sorted(_KERNELS)}"
        )
    return build(cache, heads, sharing)


def latent_attention_for(device: torch.device) -> str:
    """Name of the kernel to take on a device.

    Builds of torch for CUDA bring Triton along, those for CPUs do not.
    """
    return "triton" if device.type == "cuda" and _has_triton() else "tiled"


def _has_triton() -> bool:
    return find_spec("triton") is not None


def _build_triton(cache: KVCache, heads: LatentHeads, sharing: LatentSharing) -> LatentKernel:
    if not _has_triton():
        raise ConfigError("latent attention kernel 'triton': needs the package triton")
    from twinflow.runtime.attention.latent.triton_attention import (  # noqa: PLC0415  may be absent
        TritonLatentAttention,
    )

    return TritonLatentAttention(cache, heads, sharing)


register_latent_attention("tiled", TiledLatentAttention)
register_latent_attention("triton", _build_triton)
