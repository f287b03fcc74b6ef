"""KV blocks with known content, and a layout small enough for tests."""

from collections.abc import Callable

import torch

from twinflow.parallel.kv_layout import KVLayout

SMALL_LAYOUT = KVLayout.of_heads(
    num_layers=6, kv_heads=2, head_dim=8, block_size=4, dtype="float32"
)
SMALL_LAYER_BYTES = SMALL_LAYOUT.layer_bytes(0)


def random_cache(layout: KVLayout, num_blocks: int, seed: int) -> torch.Tensor:
    """Blocks of random values: [num_blocks, page_elements], the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_blocks, layout.page_elements)
    return torch.randn(shape, generator=generator).to(layout.torch_dtype)


def pages_of(
    layout: KVLayout, cache: torch.Tensor, first_block: int = 0
) -> Callable[[int, int, int, int], torch.Tensor]:
    """The function by which transfers find pages: block `first_block` is the cache's first."""

    def page(block: int, first_layer: int, num_layers: int, part: int) -> torch.Tensor:
        size = layout.layer_elements(part)
        start = layout.part_offsets[part] + first_layer * size
        return cache[block - first_block, start : start + num_layers * size]

    return page
