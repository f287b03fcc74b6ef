"""Absorbed latent attention as Triton kernels: splits of the context, and their merging.

The context of a row is cut at multiples of a fixed number of slots, so where it is cut depends on
nothing but positions (flash decoding, with splits that do not follow the batch). One program takes
one row, some heads and one split, with the recurrence of FlashAttention (arXiv 2205.14135,
algorithm 1); a second kernel merges the splits of a row in their order. A row is computed as if
it were alone, so its bits do not depend on the other rows.

For the same reason nothing is specialised on that varies from step to step: all steps run the same
machine code. Importing this module needs Triton.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Pieces(NamedTuple):
    """What a rank holds of the latents of a layer.

    Attributes:
        common: plane of the columns that every shard has; any plane if there are none.
        slices: plane of the first slice of columns.
        rope: plane of the rotary keys.
        page_stride: elements from one block to the next.
        slice_stride: elements from the plane of a slice to that of the next.
    """

    common: Tensor
    slices: Tensor
    rope: Tensor
    page_stride: int
    slice_stride: int


class Work(NamedTuple):
    """What is to be computed.

    Attributes:
        items: int32 [items, 4]: row, where its block table begins, first slot, end of the slots.
        tables: int32 block tables.
        first_items: int32 [rows + 1] first item of each row.
    """

    items: Tensor
    tables: Tensor
    first_items: Tensor


class Parts(NamedTuple):
    """Results of items.

    Attributes:
        means: float32 [items, heads, columns] weighted means of latents.
        totals: float32 [items, heads] log2 of the sum of the exponentiated scores.
    """

    means: Tensor
    totals: Tensor


class Shape(NamedTuple):
    """Sizes that the kernels are compiled for; those that are `padded` are powers of two.

    Attributes:
        heads: that attend.
        common: common columns.
        common_padded: the same, padded.
        slice: columns of one slice.
        sliced: columns of all slices.
        sliced_padded: the same, padded.
        columns_padded: all columns, padded.
        rope: elements of a rotary key.
        rope_padded: the same, padded.
        block_size: slots of a block.
        head_tile: heads of a program.
        token_tile: slots that are taken at a time.
    """

    heads: int
    common: int
    common_padded: int
    slice: int
    sliced: int
    sliced_padded: int
    columns_padded: int
    rope: int
    rope_padded: int
    block_size: int
    head_tile: int
    token_tile: int


@triton.jit(do_not_specialize_on_alignment=["queries", "work", "parts"])  # type: ignore[untyped-decorator]
def attend_splits(queries, pieces, work, parts, SHAPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Attention of one row to one split, for some heads.

    Args:
        queries: float32 [rows, heads, columns + rope], scaled, and by log2(e) in addition.
        pieces: `Pieces`.
        work: `Work`.
        parts: `Parts`, written.
        SHAPE: `Shape`.
    """
    heads: tl.constexpr = SHAPE.heads
    columns: tl.constexpr = SHAPE.common + SHAPE.sliced
    tile: tl.constexpr = SHAPE.head_tile
    sliced_padded: tl.constexpr = SHAPE.sliced_padded
    common_padded: tl.constexpr = SHAPE.common_padded
    head_tiles: tl.constexpr = (heads + tile - 1) // tile
    # Programs that read the same slots are neighbours, for the second-level cache.
    item = (tl.program_id(0) // head_tiles).to(tl.int64)
    head = tl.program_id(0) % head_tiles * tile + tl.arange(0, tile)
    row = tl.load(work.items + item * 4).to(tl.int64)
    table = work.tables + tl.load(work.items + item * 4 + 1)
    first = tl.load(work.items + item * 4 + 2)
    end = tl.load(work.items + item * 4 + 3)

    dtype = pieces.slices.dtype.element_ty
    sliced = tl.arange(0, sliced_padded)[None, :]
    turned = tl.arange(0, SHAPE.rope_padded)[None, :]
    is_head = (head < heads)[:, None]
    is_sliced, is_turned = sliced < SHAPE.sliced, turned < SHAPE.rope
    query = queries + (row * heads + head)[:, None] * (columns + SHAPE.rope)
    sliced_query = tl.load(query + SHAPE.common + sliced, is_head & is_sliced, 0.0).to(dtype)
    rope_query = tl.load(query + columns + turned, is_head & is_turned, 0.0).to(dtype)
    sliced_sum = tl.zeros([tile, sliced_padded], tl.float32)
    if SHAPE.common:
        shared = tl.arange(0, common_padded)[None, :]
        is_shared = shared < SHAPE.common
        common_query = tl.load(query + shared, is_head & is_shared, 0.0).to(dtype)
        common_sum = tl.zeros([tile, common_padded], tl.float32)
    highest = tl.full([tile], float("-inf"), tl.float32)
    total = tl.zeros([tile], tl.float32)
    column = sliced // SHAPE.slice * pieces.slice_stride + sliced % SHAPE.slice

    for start in range(first, end, SHAPE.token_tile):
        slot = start + tl.arange(0, SHAPE.token_tile)
        is_held = slot < end  # what is behind may be anything, even no number
        block = tl.load(table + slot // SHAPE.block_size, is_held, 0).to(tl.int64)
        page = (block * pieces.page_stride)[:, None]
        token = (slot % SHAPE.block_size)[:, None]
        held = is_held[:, None]
        latents = tl.load(
            pieces.slices + page + token * SHAPE.slice + column, held & is_sliced, 0.0
        )
        keys = tl.load(pieces.rope + page + token * SHAPE.rope + turned, held & is_turned, 0.0)
        scores = tl.dot(sliced_query, tl.trans(latents), input_precision="ieee")
        scores = tl.dot(rope_query, tl.trans(keys), scores, input_precision="ieee")
        if SHAPE.common:
            leading = tl.load(
                pieces.common + page + token * SHAPE.common + shared, held & is_shared, 0.0
            )
            scores = tl.dot(common_query, tl.trans(leading), scores, input_precision="ieee")
        scores = tl.where(is_held[None, :], scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_highest[:, None])
        fade = tl.exp2(highest - new_highest)
        highest = new_highest
        total = total * fade + tl.sum(weights, 1)
        weights = weights.to(dtype)
        sliced_sum = tl.dot(weights, latents, sliced_sum * fade[:, None], input_precision="ieee")
        if SHAPE.common:
            common_sum = tl.dot(
                weights, leading, common_sum * fade[:, None], input_precision="ieee"
            )

    mean = parts.means + (item * heads + head)[:, None] * columns
    tl.store(mean + SHAPE.common + sliced, sliced_sum / total[:, None], is_head & is_sliced)
    if SHAPE.common:
        tl.store(mean + shared, common_sum / total[:, None], is_head & is_shared)
    tl.store(parts.totals + item * heads + head, highest + tl.log2(total), head < heads)


@triton.jit(do_not_specialize_on_alignment=["work", "parts", "out", "lse"])  # type: ignore[untyped-decorator]
def merge_splits(work, parts, out, lse, SHAPE: tl.constexpr, WITH_LSE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The whole context of one row and head from its splits.

    Args:
        work: `Work`.
        parts: `Parts` that `attend_splits` has written.
        out: float32 [rows, heads, columns], written: weighted means, zero if a row has no item.
        lse: float32 [rows, heads], written: natural logarithms of sums, -inf if it has none; any
            tensor without WITH_LSE.
        SHAPE: `Shape`.
        WITH_LSE: whether `lse` is written.
    """
    columns: tl.constexpr = SHAPE.common + SHAPE.sliced
    columns_padded: tl.constexpr = SHAPE.columns_padded
    cell = tl.program_id(0).to(tl.int64)
    row, head = cell // SHAPE.heads, cell % SHAPE.heads
    first = tl.load(work.first_items + row).to(tl.int64)
    end = tl.load(work.first_items + row + 1).to(tl.int64)
    column = tl.arange(0, columns_padded)
    highest = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    weighted = tl.zeros([columns_padded], tl.float32)
    for item in range(first, end):
        part = item * SHAPE.heads + head
        part_total = tl.load(parts.totals + part)
        new_highest = tl.maximum(highest, part_total)
        weight = tl.exp2(part_total - new_highest)
        fade = tl.exp2(highest - new_highest)
        highest = new_highest
        total = total * fade + weight
        mean = tl.load(parts.means + part * columns + column, column < columns, 0.0)
        weighted = weighted * fade + weight * mean
    divisor = tl.where(end > first, total, 1.0)
    tl.store(out + cell * columns + column, weighted / divisor, column < columns)
    if WITH_LSE:
        natural = 0.6931471805599453  # ln 2
        tl.store(lse + cell, (highest + tl.log2(divisor)) * natural)
