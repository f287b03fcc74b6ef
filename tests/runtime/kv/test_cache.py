"""The pages of a KV cache alias its memory and keep to the documented layout."""

import numpy as np
import pytest
import torch

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.kv_part import KVPart
from twinflow.runtime.kv.cache import KVCache

# Two parts of different shapes: 3 layers of 2 planes of 8 x 4, and of 1 plane of 8 x 2.
PARTS = (KVPart("wide", 2, 4), KVPart("narrow", 1, 2))
LAYOUT = KVLayout(3, 8, "float32", PARTS, "anything")


def make_cache(num_blocks: int = 5) -> KVCache:
    return KVCache(LAYOUT, num_blocks, torch.device("cpu"))


def test_sizes_of_a_layout() -> None:
    assert [LAYOUT.layer_bytes(part) for part in (0, 1)] == [2 * 8 * 4 * 4, 8 * 2 * 4]
    assert LAYOUT.part_offsets == (0, 3 * 2 * 8 * 4)
    assert LAYOUT.block_bytes == 3 * (LAYOUT.layer_bytes(0) + LAYOUT.layer_bytes(1))


@pytest.mark.parametrize("part", [0, 1])
def test_page_is_the_memory_of_some_layers_of_a_part(part: int) -> None:
    cache = make_cache()
    page = cache.page(2, first_layer=1, num_layers=2, part=part)
    assert page.dtype is torch.uint8
    assert page.is_contiguous()
    assert page.numel() == 2 * LAYOUT.layer_bytes(part)

    page.fill_(0xFF)
    written = cache.data.view(torch.int32) == -1
    assert written.sum() == page.numel() // 4
    assert cache.part(part)[2, 1:].isnan().all()

    cache.part(part)[2, 1] = 1.5
    expected = torch.full_like(cache.part(part)[2, 1], 1.5).view(-1).view(torch.uint8)
    assert torch.equal(page[: LAYOUT.layer_bytes(part)], expected)


def test_pages_of_layers_and_parts_make_up_the_block() -> None:
    cache = make_cache()
    cache.data.copy_(torch.randn_like(cache.data))
    pages = [cache.page(3, layer, 1, part) for part in (0, 1) for layer in range(3)]
    assert torch.equal(torch.cat(pages), cache.data[3].view(torch.uint8))
    assert cache.data[3].nbytes == LAYOUT.block_bytes


@pytest.mark.parametrize(
    ("block", "first", "count", "part"),
    [
        (0, 0, 1, 0),
        (5, 0, 1, 0),
        (-1, 0, 1, 0),
        (1, 2, 2, 0),
        (1, -1, 1, 0),
        (1, 0, 0, 0),
        (1, 0, 1, 2),
        (1, 0, 1, -1),
    ],
)
def test_page_refuses_what_does_not_exist(block: int, first: int, count: int, part: int) -> None:
    with pytest.raises(ValueError, match=r"not in"):
        make_cache().page(block, first, count, part)


def test_clear_zeroes_whole_blocks_and_no_others() -> None:
    cache = make_cache()
    cache.data.fill_(3.0)
    cache.clear(np.array([1, 3]))
    assert [bool((block == 0).all()) for block in cache.data] == [False, True, False, True, False]
    assert [bool((block == 3).all()) for block in cache.data] == [True, False, True, False, True]


def test_a_cache_has_room_for_more_than_the_null_block() -> None:
    with pytest.raises(ValueError, match="at least 2 blocks"):
        make_cache(num_blocks=1)
