"""Views of the KV cache alias its memory and keep to the documented layout."""

import numpy as np
import pytest
import torch

from twinflow.parallel.kv_layout import KVLayout
from twinflow.runtime.kv.cache import KVCache

LAYOUT = KVLayout(num_layers=3, kv_heads=2, head_dim=4, block_size=8, dtype="float32")


def make_cache(num_blocks: int = 5) -> KVCache:
    return KVCache(LAYOUT, num_blocks, torch.device("cpu"))


def test_page_is_the_memory_of_the_block() -> None:
    cache = make_cache()
    page = cache.page(2, first_layer=1, num_layers=2)
    assert page.dtype is torch.uint8
    assert page.is_contiguous()
    assert page.numel() == 2 * LAYOUT.layer_bytes

    page.fill_(0xFF)
    written = cache.data.view(torch.int32) == -1
    assert written[2, 1:].all()
    assert written.sum() == written[2, 1:].numel()

    cache.data[2, 1] = 1.5
    expected = torch.full(cache.data[2, 1].shape, 1.5).view(-1).view(torch.uint8)
    assert torch.equal(page[: LAYOUT.layer_bytes], expected)


def test_pages_of_layers_make_up_the_page_of_the_block() -> None:
    cache = make_cache()
    cache.data.copy_(torch.randn_like(cache.data))
    pages = [cache.page(3, layer, 1) for layer in range(LAYOUT.num_layers)]
    assert torch.equal(torch.cat(pages), cache.page(3, 0, LAYOUT.num_layers))
    assert cache.page(3, 0, LAYOUT.num_layers).numel() == LAYOUT.block_bytes


@pytest.mark.parametrize(
    ("block", "first", "count"),
    [(0, 0, 1), (5, 0, 1), (-1, 0, 1), (1, 2, 2), (1, -1, 1), (1, 0, 0)],
)
def test_page_refuses_what_does_not_exist(block: int, first: int, count: int) -> None:
    with pytest.raises(ValueError, match=r"not in"):
        make_cache().page(block, first, count)


def test_written_tokens_are_found_by_block_head_and_slot() -> None:
    cache = make_cache()
    tokens = torch.randn(3, 2 * LAYOUT.kv_heads, LAYOUT.head_dim)
    blocks, offsets = np.array([4, 1, 1]), np.array([7, 0, 3])
    cache.write(1, cache.slot_index(blocks, offsets), tokens)

    for token, block, offset in zip(tokens, blocks, offsets, strict=True):
        for head in range(LAYOUT.kv_heads):
            key = cache.data[block, 1, 0, head, offset]
            value = cache.data[block, 1, 1, head, offset]
            assert torch.equal(key, token[head])
            assert torch.equal(value, token[LAYOUT.kv_heads + head])
            row = block * cache.head_rows_per_block + head
            assert torch.equal(cache.keys(1)[row].view(8, 4)[offset], key)
            assert torch.equal(cache.values(1)[row].view(8, 4)[offset], value)
    assert int((cache.data != 0).any(-1).sum()) == 3 * 2 * LAYOUT.kv_heads


def test_clear_zeroes_whole_blocks_and_no_others() -> None:
    cache = make_cache()
    cache.data.fill_(3.0)
    cache.clear(np.array([1, 3]))
    assert [bool((block == 0).all()) for block in cache.data] == [False, True, False, True, False]
    assert [bool((block == 3).all()) for block in cache.data] == [True, False, True, False, True]


def test_a_cache_has_room_for_more_than_the_null_block() -> None:
    with pytest.raises(ValueError, match="at least 2 blocks"):
        make_cache(num_blocks=1)
