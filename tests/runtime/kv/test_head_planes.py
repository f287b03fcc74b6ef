"""Keys and values are found by block, head and slot, whatever parts the heads are in."""

import numpy as np
import pytest
import torch

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.kv_part import KVPart
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.kv.head_planes import HeadPlanes

CPU = torch.device("cpu")


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_written_tokens_are_found_by_block_head_and_slot(parts: int) -> None:
    layout = KVLayout.of_heads(
        num_layers=3, kv_heads=4, head_dim=4, block_size=8, dtype="float32", parts=parts
    )
    cache = KVCache(layout, 5, CPU)
    planes = HeadPlanes(cache)
    tokens = torch.randn(3, 2 * 4, 4)
    blocks, offsets = np.array([4, 1, 1]), np.array([7, 0, 3])
    planes.write(1, planes.slot_index(blocks, offsets), tokens)

    heads_in_part = 4 // parts
    for token, block, offset in zip(tokens, blocks, offsets, strict=True):
        for head in range(4):
            part, plane = divmod(head, heads_in_part)
            stored = cache.part(part)[block, 1, :, offset]
            key, value = stored[plane], stored[heads_in_part + plane]
            assert torch.equal(key, token[head])
            assert torch.equal(value, token[4 + head])
            row = block * planes.head_rows_per_block + planes.head_rows[head]
            assert torch.equal(planes.keys(1)[row].view(8, 4)[offset], key)
            assert torch.equal(planes.values(1)[row].view(8, 4)[offset], value)
    assert int((cache.data.view(-1, 4) != 0).any(-1).sum()) == 3 * 2 * 4


def test_other_parts_are_no_heads() -> None:
    layout = KVLayout(3, 8, "float32", (KVPart("a", 2, 4), KVPart("b", 1, 2)), "anything")
    with pytest.raises(ValueError, match="not of keys and values of heads"):
        HeadPlanes(KVCache(layout, 2, CPU))
