"""Digests name content, transfer and place."""

import pytest
import torch

from twinflow.parallel.links.digest import page_digests, page_seed


def test_equal_pages_in_equal_places_have_equal_digests() -> None:
    page = torch.arange(24.0).view(2, 3, 4)
    seed = page_seed("t", "heads 0-1", 3, 0, 2)
    assert page_digests([page], [seed]) == page_digests([page.clone()], [seed])
    assert 0 <= page_digests([page], [seed])[0] < 2**64


def test_every_single_bit_flip_changes_the_digest() -> None:
    page = torch.zeros(4, dtype=torch.uint8)
    seen = set(page_digests([page], [1]))
    for bit in range(32):
        flipped = page.clone()
        flipped[bit // 8] = 1 << (bit % 8)
        seen.update(page_digests([flipped], [1]))
    assert len(seen) == 33


def test_the_place_is_part_of_the_digest() -> None:
    page = torch.ones(8)
    places = [
        ("t", "a", 3, 0, 2),
        ("u", "a", 3, 0, 2),
        ("t", "b", 3, 0, 2),
        ("t", "a", 4, 0, 2),
        ("t", "a", 3, 2, 2),
        ("t", "a", 3, 0, 1),
    ]
    seeds = [page_seed(*place) for place in places]
    assert len(set(page_digests([page] * len(seeds), seeds))) == len(places)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_every_dtype_is_read_as_bytes(dtype: torch.dtype) -> None:
    page = torch.arange(16).to(dtype).view(4, 4)
    same_bytes = page.view(torch.uint8)
    assert page_digests([page], [0]) == page_digests([same_bytes], [0])


def test_a_page_in_pieces_and_a_missing_seed_are_refused() -> None:
    with pytest.raises(ValueError, match="one piece of memory"):
        page_digests([torch.ones(4, 4).t()], [0])
    with pytest.raises(ValueError, match="shorter"):
        page_digests([torch.ones(4), torch.ones(4)], [0])
