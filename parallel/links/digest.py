"""Proof that a page is the promised one, in the promised place.

A digest is the 64-bit xxh3 hash of the page's bytes, seeded with the transfer and the place of the
page in it: a right page in a wrong place has a wrong digest. It finds accidents, bit flips and
mix-ups; it is no defence against somebody who forges pages.
"""

from collections.abc import Sequence

import torch
import xxhash


def page_seed(transfer_id: str, part: str, block: int, first_layer: int, num_layers: int) -> int:
    """The seed of one page: layers `[first_layer, first_layer + num_layers)` of a part of a block.

    Args:
        transfer_id: id of the transfer, unique between the two workers.
        part: name of the part.
        block: number of the block within the sequence.
        first_layer: first layer of the page.
        num_layers: layers of the page.
    """
    place = f"{transfer_id}/{part}/{block}/{first_layer}/{num_layers}"
    return xxhash.xxh3_64_intdigest(place.encode())


def page_digests(pages: Sequence[torch.Tensor], seeds: Sequence[int]) -> list[int]:
    """The digest of each page, in 64 bits.

    CPU pages are read in place, pages of other devices are copied to the host first.

    Args:
        pages: contiguous tensors of any shape and dtype.
        seeds: `page_seed` of each page.

    Raises:
        ValueError: a page is not contiguous, or the counts differ.
    """
    return [_digest(page, seed) for page, seed in zip(pages, seeds, strict=True)]


def _digest(page: torch.Tensor, seed: int) -> int:
    if not page.is_contiguous():
        raise ValueError(f"a page is one piece of memory, not {tuple(page.stride())}")
    content = page.detach().view(-1).view(torch.uint8).cpu().numpy().data
    return xxhash.xxh3_64_intdigest(content, seed)
