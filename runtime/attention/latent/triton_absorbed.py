"""Absorbed latent attention by `triton_kernels`: what is to be computed, and in which launches.

Scores and sums are float32; products take what the cache holds, so with a 16-bit cache queries
and softmax weights are rounded to its type on their way into the tensor cores. Importing this
module needs Triton.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twinflow.parallel.latent.block_share import BlockShare, IntArray
from twinflow.parallel.latent.scheme import COMMON_PART
from twinflow.runtime.attention.latent.triton_kernels import (
    Parts,
    Pieces,
    Shape,
    Work,
    attend_splits,
    merge_splits,
)
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.attention.workspace import Workspace
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.kv.latent_planes import LatentPlanes

# Elements of the means of splits that exist at a time, unless those of one row exceed it.
_PART_ELEMENTS = 1 << 24
_MIN_SPLIT_TOKENS = 512
# No side of a product on tensor cores is shorter.
_MIN_TILE = 16
# Whether x * y + z rounds once. Versions of Triton differ in what they do untold.
_FUSED = True


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the work is cut; depends on the heads and the type of the cache alone.

    Attributes:
        split_tokens: slots of a split.
        head_tile: heads of a program.
        token_tile: slots taken at a time.
        num_warps: of a program.
        num_stages: token tiles in flight.
    """

    split_tokens: int
    head_tile: int
    token_tile: int
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, num_heads: int, dtype: torch.dtype) -> "Tiling":
        """For some heads and a type of the cache.

        The means of a split grow with the heads, the latents that it reads do not. So splits do:
        what is written and read again for merging stays a small part of what is read anyway.
        Tiles are the largest that spill no registers with latents of 512 columns.
        """
        tokens = max(_MIN_SPLIT_TOKENS, _power_of_two(16 * num_heads))
        if dtype is torch.float32:  # exact products run on ordinary cores
            return cls(tokens, 16, 16, num_warps=8, num_stages=1)
        if num_heads <= 16:
            return cls(tokens, 16, 32, num_warps=4, num_stages=3)
        return cls(tokens, 32, 32, num_warps=8, num_stages=3)


@dataclass(frozen=True, slots=True)
class _Launch:
    """Rows that are computed together."""

    rows: slice
    work: Work


class AbsorbedSplits:
    """Absorbed attention over what a rank holds.

    Args:
        cache: the latents and rotary keys.
        planes: of the cache.
        num_heads: attended heads.
        share: the blocks that the rank holds.
    """

    def __init__(
        self, cache: KVCache, planes: LatentPlanes, num_heads: int, share: BlockShare
    ) -> None:
        self._planes = planes
        self._share = share
        self._tiling = Tiling.of(num_heads, cache.layout.torch_dtype)
        has_common = cache.layout.parts[0].name == COMMON_PART
        self._first_slice = 1 if has_common else 0
        common = planes.widths[0] if has_common else 0
        self._shape = _shape(planes, common, num_heads, share.block_size, self._tiling)
        self._workspace = Workspace(cache.data.device)
        self._launches: list[_Launch] | None = None

    def plan(self, rows: FlatRows) -> None:
        """Take over the rows of a step."""
        tables = self._upload(rows.blocks)
        first_entries = np.repeat(rows.first_blocks, rows.counts)
        held = self._share.slots(rows.positions + 1)
        self._launches = [
            _Launch(some, self._work(first_entries[some], held[some], tables))
            for some in self._cuts(held)
        ]

    def attend(
        self, layer: int, queries: Tensor, *, with_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `LatentKernel.attend_generated`."""
        if self._launches is None:
            raise RuntimeError("attention is asked for before there was a plan")
        shape, take = self._shape, self._workspace.take
        out = take("out", (len(queries), shape.heads, self._planes.width))
        lse = take("lse", (len(queries), shape.heads)) if with_lse else None
        scaled = torch.mul(queries, math.log2(math.e), out=take("queries", queries.shape))
        pieces = self._pieces(layer)
        done = 0
        # Does nothing for tensors of the CPU.
        with torch.cuda.device_of(queries):  # type: ignore[no-untyped-call]
            for launch in self._launches:
                done = launch.rows.stop
                parts = self._attend(launch, scaled, pieces)
                found = out[launch.rows]
                merge_splits[(len(found) * shape.heads,)](
                    launch.work,
                    parts,
                    found,
                    found if lse is None else lse[launch.rows],
                    SHAPE=shape,
                    WITH_LSE=with_lse,
                    enable_fp_fusion=_FUSED,
                )
        out[done:].zero_()
        if lse is not None:
            lse[done:].fill_(-torch.inf)
        return out, lse

    def _attend(self, launch: _Launch, queries: Tensor, pieces: Pieces) -> Parts:
        shape, tiling, count = self._shape, self._tiling, len(launch.work.items)
        parts = Parts(
            self._workspace.take("means", (count, shape.heads, self._planes.width)),
            self._workspace.take("totals", (count, shape.heads)),
        )
        if count:
            attend_splits[(count * -(-shape.heads // shape.head_tile),)](
                queries[launch.rows],
                pieces,
                launch.work,
                parts,
                SHAPE=shape,
                num_warps=tiling.num_warps,
                num_stages=tiling.num_stages,
                enable_fp_fusion=_FUSED,
            )
        return parts

    def _pieces(self, layer: int) -> Pieces:
        planes = self._planes.planes(layer)
        slices = planes[self._first_slice : -1]
        # Slices have the same pitch because they have the same width.
        offsets = [int(plane.storage_offset()) for plane in slices[:2]]
        stride = offsets[-1] - offsets[0]
        return Pieces(planes[0], slices[0], planes[-1], slices[0].stride(0), stride)

    def _cuts(self, held: IntArray) -> Iterator[slice]:
        """As many rows at a time as keep the means of their splits within bounds."""
        splits = -(-held // self._tiling.split_tokens)
        affordable = _PART_ELEMENTS // (self._shape.heads * self._planes.width)
        ends = np.cumsum(splits)
        first = 0
        while first < len(held):
            before = ends[first] - splits[first]
            end = int(np.searchsorted(ends, before + affordable, side="right"))
            yield slice(first, max(first + 1, end))
            first = max(first + 1, end)

    def _work(self, first_entries: IntArray, held: IntArray, tables: Tensor) -> Work:
        tokens = self._tiling.split_tokens
        splits = -(-held // tokens)
        first_items = np.concatenate(([0], np.cumsum(splits)))
        row = np.repeat(np.arange(len(held)), splits)
        starts = (np.arange(len(row)) - first_items[row]) * tokens
        ends = np.minimum(starts + tokens, held[row])
        items = np.stack((row, first_entries[row], starts, ends), axis=1)
        return Work(self._upload(items), tables, self._upload(first_items))

    def _upload(self, array: IntArray) -> Tensor:
        device = self._workspace.device
        return torch.from_numpy(array.astype(np.int32)).to(device, non_blocking=True)


def _shape(
    planes: LatentPlanes, common: int, num_heads: int, block_size: int, tiling: Tiling
) -> Shape:
    sliced = planes.width - common
    return Shape(
        heads=num_heads,
        common=common,
        common_padded=_padded(common),
        slice=planes.widths[-1],
        sliced=sliced,
        sliced_padded=_padded(sliced),
        columns_padded=_padded(planes.width),
        rope=planes.rope_width,
        rope_padded=_padded(planes.rope_width),
        block_size=block_size,
        head_tile=tiling.head_tile,
        token_tile=tiling.token_tile,
    )


def _power_of_two(number: int) -> int:
    """The least one that is not smaller than a number of at least 1."""
    return 1 << (number - 1).bit_length()


def _padded(width: int) -> int:
    return max(_MIN_TILE, _power_of_two(max(width, 1)))
