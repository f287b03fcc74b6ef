"""Runs a model over the rows of a step, whatever they are: prompts, chunks of them, decode tokens.

Rows may cross some of the layers only, and the others in later steps. The runner owns the KV
cache, the attention kernel and the hidden states that wait between such steps. It knows no
requests, samples nothing and decides nothing: whoever calls it says which tokens go where.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.latent.block_share import IntArray
from twinflow.runtime.attention.base import Attention
from twinflow.runtime.attention.latent.registry import (
    create_latent_attention,
    latent_attention_for,
)
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.layer_ranges import Frontier, FrontierPlace, layer_segments
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.models.base import ForwardPass, Model, RowBatch
from twinflow.runtime.models.latent_weights import latent_heads
from twinflow.runtime.models.sharding import HeadCut


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """Consecutive tokens of one sequence, to be computed in one step.

    Attributes:
        token_ids: tokens of the rows.
        start: position of the first row in its sequence; what comes before is in the KV cache.
        block_ids: block table covering the sequence up to the last row.
        samples: logits of the last row are wanted.
        drafted: so many of the last rows are of tokens that were proposed only; with `samples`,
            logits of each of them and of the row before them are wanted.
        prompt_tokens: tokens of the sequence that are its prompt, the others being generated; may
            decide how a token attends, and so is the same in all steps of a sequence.
        held_as: what the sequence is called where its KV is handed over, if it is; for ranks that
            know no requests.
        layer_start: first layer that the rows cross. Above 0, the same rows have crossed those
            before in an earlier step, the latest one of their sequence.
        layer_end: one behind the last; None for all layers.
        sequence: what the sequence is called; needed by rows that do not cross all layers.
        ancestors: for each token right before `start` that another row of this step computes, in
            order, how many rows before the first of these that one is: its KV is written to the
            block table of these as well. For branches of a proposal (`runtime.tree_branches`).
        copied_block: block whose contents the block of `start` gets before the step; 0 for none.
    """

    token_ids: Sequence[int]
    start: int
    block_ids: Sequence[int]
    samples: bool
    prompt_tokens: int = 0
    held_as: str | None = None
    layer_start: int = 0
    layer_end: int | None = None
    sequence: str = ""
    drafted: int = 0
    ancestors: tuple[int, ...] = ()
    copied_block: int = 0

    @property
    def sampled_rows(self) -> int:
        """How many of the last rows' logits are wanted."""
        return 1 + self.drafted if self.samples else 0

    def crosses(self, end: int) -> bool:
        """Whether the rows reach the end of the layers before `end` in this step."""
        return self.layer_start < end and (self.layer_end is None or end <= self.layer_end)


class ModelRunner:
    """A model with its KV cache.

    Args:
        model: what to run.
        layout: of the KV blocks; must fit the model.
        num_blocks: blocks, the null block included.
        max_num_tokens: most rows of a step.
        device: where the cache and the model are.

    Attributes:
        kv_cache: the blocks; pages may be read and written between steps.
        batch_invariant: a token's KV and logits do not depend, bit by bit, on what else is
            computed with it. Measured on this machine when model and runner are built.
    """

    def __init__(
        self,
        model: Model,
        layout: KVLayout,
        num_blocks: int,
        max_num_tokens: int,
        device: torch.device,
    ) -> None:
        _check_layout(model, layout)
        self.kv_cache = KVCache(layout, num_blocks, device)
        self._model = model
        self._max_num_tokens = max_num_tokens
        self._device = device
        self._row_tile = model.row_tile
        self._take_scratch()
        self.batch_invariant = self._row_tile.batch_invariant and self._attention.batch_invariant

    def _take_scratch(self) -> None:
        """What belongs to the steps of one runner: nothing of it is shared."""
        self._attention = _attention(self._model, self.kv_cache)
        self._traffic = self._model.new_traffic()
        self._frontier = Frontier()
        size = self._row_tile.round_up(self._max_num_tokens)
        self._token_ids = torch.zeros(size, dtype=torch.int64, device=self._device)
        self._positions = torch.zeros(size, dtype=torch.int64, device=self._device)

    def beside(self) -> "ModelRunner":
        """Another runner over the same weights and KV, for steps at the same time as this one's.

        Two steps at the same time write no common block, and read none that the other one writes.
        """
        other = copy(self)
        other._take_scratch()
        return other

    def apart(self, layout: KVLayout, num_blocks: int, max_num_tokens: int) -> "ModelRunner":
        """Another runner over the same weights with KV of its own; arguments as of the class."""
        return ModelRunner(self._model, layout, num_blocks, max_num_tokens, self._device)

    def shares_weights(self, other: "ModelRunner") -> bool:
        """Whether another runner computes the same model from the same memory."""
        return self._model is other._model

    @property
    def row_tile(self) -> int:
        """Rows of matrix products are padded to a multiple of this."""
        return self._row_tile.rows

    @torch.inference_mode()
    def forward(
        self,
        rows: Sequence[SequenceRows],
        on_layers: Callable[[int, int], None] | None = None,
        layers_per_unit: int = 0,
        groups: Sequence[range] | None = None,
    ) -> Tensor:
        """Compute one step.

        Args:
            rows: what to compute; the KV before each group is in the cache.
            on_layers: called with (first, end) when the KV of layers [first, end) is completely
                written for the rows that cross layer `end - 1` in this step; in order, while later
                layers are still to be computed.
            layers_per_unit: layers of such a call, 0 for all of them.
            groups: all layers, in groups whose attention is computed side by side; None for one
                layer after the other. See `ForwardPass.run_groups`.

        Returns:
            float32 [rows whose logits are wanted, vocab_size], in their order.

        Raises:
            ValueError: no rows, too many, a token, position, block or layer that does not exist,
                rows that go on from where they are not, or groups of rows or a listener that want
                single layers.
        """
        if groups is not None:
            return self._forward_grouped(rows, groups, reports=on_layers is not None)
        every, ranges = self._lay_out(rows), self._layer_ranges(rows)
        hidden = self._resume(rows)
        logits = torch.empty(0, self._model.config.vocab_size, device=self._device)
        for segment in layer_segments(ranges):
            members = [rows[index] for index in segment.groups]
            flat = every if len(members) == len(rows) else self._lay_out(members)
            pieces = [hidden.pop(index) for index in segment.groups if index in hidden]
            forward_pass = self._begin(members, flat, pieces)
            self._run(forward_pass, (segment.first, segment.end), layers_per_unit, on_layers)
            if segment.end == self._model.config.num_layers:
                logits = self._logits(forward_pass, _sampled_rows(members, flat))
                break
            reached = torch.split(forward_pass.hidden[: flat.num_rows], flat.counts.tolist())
            for index, states in zip(segment.groups, reached, strict=True):
                if ranges[index][1] > segment.end:
                    hidden[index] = states
                else:
                    self._frontier.put(*_front(rows[index], segment.end), states)
        return logits

    def _forward_grouped(
        self, rows: Sequence[SequenceRows], groups: Sequence[range], *, reports: bool
    ) -> Tensor:
        num_layers, flat = self._model.config.num_layers, self._lay_out(rows)
        if [layer for group in groups for layer in group] != list(range(num_layers)):
            raise ValueError(f"groups {groups} are not the {num_layers} layers in order")
        if reports or any(span != (0, num_layers) for span in self._layer_ranges(rows)):
            raise ValueError("layers in groups are crossed all at once, and nobody is told of one")
        forward_pass = self._begin(rows, flat, ())
        forward_pass.run_groups(groups)
        return self._logits(forward_pass, _sampled_rows(rows, flat))

    def forget(self, sequence: str) -> bool:
        """Drop the rows of a sequence that have crossed some of the layers only.

        Returns:
            Whether there were any.
        """
        return self._frontier.forget(sequence)

    @property
    def num_unfinished(self) -> int:
        """Sequences of which rows have crossed some of the layers only."""
        return len(self._frontier)

    def _resume(self, rows: Sequence[SequenceRows]) -> dict[int, Tensor]:
        """Hidden states of the row groups that have crossed some of the layers, by index."""
        return {
            index: self._frontier.take(*_front(group, group.layer_start))
            for index, group in enumerate(rows)
            if group.layer_start > 0
        }

    def _begin(
        self, rows: Sequence[SequenceRows], flat: FlatRows, hidden: Sequence[Tensor]
    ) -> ForwardPass:
        """Start a pass over rows: from their hidden states, or from their tokens if these are
        none."""
        batch = self._batch(rows, flat)
        self._attention.prepare(flat)
        if not hidden:
            # Some blocks that are copied are, on this rank, not written before this step.
            self.kv_cache.copy(flat.copied_blocks)
            self.kv_cache.clear(flat.opened_blocks(self._attention.share))
            return self._model.begin(batch, self._attention, traffic=self._traffic)
        padding = hidden[0].new_zeros(len(batch.token_ids) - flat.num_rows, hidden[0].shape[1])
        states = torch.cat([*hidden, padding])
        return self._model.begin(batch, self._attention, states, self._traffic)

    def _run(
        self,
        forward_pass: ForwardPass,
        layers: tuple[int, int],
        layers_per_unit: int,
        on_layers: Callable[[int, int], None] | None,
    ) -> None:
        """Run layers, and report every unit that ends among them."""
        num_layers = self._model.config.num_layers
        heard = layers_per_unit if on_layers is not None else 0
        unit = heard or num_layers
        first, last = layers
        while first < last:
            unit_start = first // unit * unit
            unit_end = min(unit_start + unit, num_layers)
            end = min(unit_end, last)
            forward_pass.run_layers(first, end)
            if on_layers is not None and end == unit_end:
                on_layers(unit_start, unit_end)
            first = end

    def _layer_ranges(self, rows: Sequence[SequenceRows]) -> list[tuple[int, int]]:
        num_layers = self._model.config.num_layers
        ranges = []
        for index, group in enumerate(rows):
            end = num_layers if group.layer_end is None else group.layer_end
            if not 0 <= group.layer_start < end <= num_layers:
                raise ValueError(
                    f"row group {index}: layers [{group.layer_start}, {end}) are not in "
                    f"[0, {num_layers})"
                )
            if end < num_layers and group.samples:
                raise ValueError(f"row group {index}: no logits before the last layer")
            if not 0 <= group.drafted < len(group.token_ids):
                raise ValueError(
                    f"row group {index}: {group.drafted} of {len(group.token_ids)} rows cannot be "
                    f"proposals, because the first row never is"
                )
            ranges.append((group.layer_start, end))
        return ranges

    def take_traffic(self) -> tuple[LayerTraffic, ...]:
        """What this rank's experts did since the last call, by layer; nothing without experts."""
        return () if self._traffic is None else self._traffic.take()

    def _lay_out(self, rows: Sequence[SequenceRows]) -> FlatRows:
        if not rows:
            raise ValueError("a step needs at least one row group")
        flat = FlatRows.build(rows, self._attention.share.tokens_per_entry)
        if flat.num_rows > self._max_num_tokens:
            raise ValueError(f"{flat.num_rows} rows are more than {self._max_num_tokens}")
        low, high = int(flat.blocks.min()), int(flat.blocks.max())
        if low < 1 or high >= self.kv_cache.num_blocks:
            raise ValueError(f"blocks {low}..{high} are not in 1..{self.kv_cache.num_blocks - 1}")
        return flat

    def _batch(self, rows: Sequence[SequenceRows], flat: FlatRows) -> RowBatch:
        """Fill the input buffers; rows of padding are token 0 at position 0."""
        token_ids = np.array([token for group in rows for token in group.token_ids], dtype=np.int64)
        vocab_size = self._model.config.vocab_size
        if token_ids.min() < 0 or token_ids.max() >= vocab_size:
            raise ValueError(f"a token is not in 0..{vocab_size - 1}")
        count, size = flat.num_rows, self._row_tile.round_up(flat.num_rows)
        for buffer, values in ((self._token_ids, token_ids), (self._positions, flat.positions)):
            buffer[:count].copy_(torch.from_numpy(values))
            if size > count:
                buffer[count:size].zero_()
        end_position = int(flat.positions.max()) + 1
        return RowBatch(self._token_ids[:size], self._positions[:size], end_position, count)

    def _logits(self, forward_pass: ForwardPass, rows: IntArray) -> Tensor:
        """Logits of some rows, which are repeated up to a whole row tile."""
        if not rows.size:
            return torch.empty(0, self._model.config.vocab_size, device=self._device)
        size = self._row_tile.round_up(len(rows))
        padded = rows if size == len(rows) else np.resize(rows, size)
        index = torch.from_numpy(padded).to(self._device)
        # Ordinary tensors, not those of inference mode: the caller may change logits in place.
        with torch.inference_mode(False), torch.no_grad():
            return forward_pass.logits(index)[: len(rows)]


def _attention(model: Model, cache: KVCache) -> Attention:
    """The kernel for what the model caches."""
    if model.config.latent is None:
        return model.placement.kernels.head_attention(cache, model.num_heads)
    sharing = model.placement.of_attention.latent_plan.sharing
    name = latent_attention_for(cache.data.device)
    return create_latent_attention(name, cache, latent_heads(model.config), sharing)


def _front(rows: SequenceRows, layer: int) -> tuple[str, FrontierPlace]:
    return rows.sequence, FrontierPlace(rows.start, len(rows.token_ids), layer)


def _sampled_rows(rows: Sequence[SequenceRows], flat: FlatRows) -> IntArray:
    """The rows whose logits are wanted."""
    if flat.one_row_each and all(group.samples for group in rows):
        return np.arange(flat.num_rows)
    ends = flat.first_rows + flat.counts
    wanted = [np.arange(end - g.sampled_rows, end) for g, end in zip(rows, ends, strict=True)]
    return np.concatenate(wanted)


def _check_layout(model: Model, layout: KVLayout) -> None:
    num_layers = model.placement.num_kv_layers(model.config.num_layers)
    expected = (num_layers, _token_elements(model), model.dtype)
    width = sum(part.planes * part.width for part in layout.parts)
    found = (layout.num_layers, width, layout.torch_dtype)
    if found != expected:
        raise ValueError(
            f"the KV layout has (layers, elements of a token, dtype) {found}, the model {expected}"
        )


def _token_elements(model: Model) -> int:
    """What a rank caches of a token in one layer."""
    config, latent = model.config, model.config.latent
    if latent is None:
        ranks = model.placement.of_attention.ranks
        heads = HeadCut.of(config.num_heads, config.num_kv_heads, ranks).keys.size
        return 2 * heads * config.head_dim
    columns = model.placement.of_attention.latent_plan.sharing.columns(latent.kv_rank)
    return sum(map(len, columns)) + latent.rope_dim
