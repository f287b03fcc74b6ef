"""Softmax-weighted sums over tiles, planned once per step and computed in every layer.

For each item of `work_items` (a query tile Q and a KV tile K, V of one KV head):

    S = Q Kᵀ,  P = exp(S - m),  l = Σ P,  O = P V          m: maximum of the row over its span

Items of a span add up in the order of their KV tiles, l and O alike; spans are joined by the
recurrence of FlashAttention (arXiv 2205.14135, algorithm 1), and O / l is the result. All of it
is float32, whatever the KV cache holds. Each of these operations treats a row as if it were alone:
matrix products because their row counts are multiples of a measured row tile and their columns
of 16, the others by nature. So a row's bits do not depend on the other rows of the step.

Where keys and values come from is for a `Gather` to know.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from twinflow.runtime.attention.gather import Gather
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.attention.slab import SlabRun, SoftmaxState
from twinflow.runtime.attention.work_items import Slab, TileShape, plan_work
from twinflow.runtime.attention.workspace import Workspace
from twinflow.runtime.row_tile import RowKernel, RowTile, find_row_tile

# Elements that a slab keeps in memory: small enough to stay in the cache of a core complex, large
# enough that the overhead of an operation does not matter.
SLAB_ELEMENTS = 1 << 20


class TileSums:
    """The work of some rows.

    Args:
        rows: of the step.
        shape: of the kernel.
        gather: makes the gather of a slab.
        workspace: shared with all other sums of the kernel; they are computed one after another.

    Attributes:
        slabs: to be computed in this order; those of one span follow each other.
    """

    def __init__(
        self,
        rows: FlatRows,
        shape: TileShape,
        gather: Callable[[Slab], Gather],
        workspace: Workspace,
    ) -> None:
        work = plan_work(rows, shape)
        self.slabs = [SlabRun(slab, gather(slab), workspace) for slab in work.slabs]
        self._shape = shape
        self._workspace = workspace
        self._has_blind_rows = work.has_blind_rows
        self._num_state_rows = work.num_state_rows
        self._output_rows = torch.from_numpy(work.output_rows).to(workspace.device)

    def new_state(self, name: str = "state") -> SoftmaxState:
        """A state for the slabs to merge into; the last one of the same name is lost."""
        width = self._shape.value_width
        state = SoftmaxState.take(self._workspace, self._num_state_rows, width, name)
        if self._has_blind_rows:
            state.clear()
        return state

    def log_sum_exp(self, state: SoftmaxState) -> Tensor:
        """A new [rows * num_heads] from a state that is not consumed yet."""
        return state.log_sum_exp().view(-1).index_select(0, self._output_rows)

    def finish(self, state: SoftmaxState, out: Tensor) -> None:
        """Write the result.

        Args:
            state: into which all slabs have been merged; it is consumed.
            out: [rows * num_heads or more, up to value_width]; what is behind the rows of the
                step becomes zero.
        """
        used = len(self._output_rows)
        columns = state.normalised()[:, : out.shape[1]]
        torch.index_select(columns, 0, self._output_rows, out=out[:used])
        if used < len(out):
            out[used:].zero_()


def probe_products(keys: Tensor, values: Tensor) -> RowTile:
    """Measure the two batched products; the number of matrices varies with that of rows.

    Args:
        keys: [matrices, tokens, key_width], laid out in memory like those to be multiplied.
        values: [matrices, tokens, value_width], likewise.
    """

    def product(matrices: Tensor, rows: Tensor) -> Tensor:
        count = 1 + rows.shape[0] % len(matrices)
        return torch.bmm(rows.expand(count, -1, -1).contiguous(), matrices[:count])[0]

    return find_row_tile(
        RowKernel(
            in_features=matrices.shape[1],
            flop_per_row=2 * matrices.numel(),
            dtype=torch.float32,
            device=matrices.device,
            run=partial(product, matrices),
        )
        for matrices in (keys.mT, values)
    )


def random_matrices(shape: tuple[int, int, int], seed: int, device: torch.device) -> Tensor:
    """Matrices to probe with."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device)
