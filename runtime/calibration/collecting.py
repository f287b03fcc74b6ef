"""Runs a model over text and adds up the moments of its latents.

Every token is computed as a generated one, with the exact attention of one rank, in the basis
`none`: the kernel then sees latents without the gain of their norm, and absorbed queries for just
these latents. That is what the probe listens to.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from twinflow.parallel.latent.plan import LatentPlan
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.replicated import Replicated
from twinflow.parallel.latent.transforms.fitting import plain_transform
from twinflow.parallel.latent.transforms.moments import LatentMoments, MomentSums
from twinflow.parallel.latent.transforms.none import NoTransform
from twinflow.parallel.ranks.base import OneRank
from twinflow.runtime.attention.latent.tiled import TiledLatentAttention
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.calibration.corpus import Window
from twinflow.runtime.calibration.subject import BLOCK_SIZE, Subject
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.model_runner import SequenceRows
from twinflow.runtime.models.base import Model, RowBatch
from twinflow.runtime.models.config import LatentConfig
from twinflow.runtime.models.latent_weights import latent_heads

# Told a phase, how much of it is done, and how much there is.
CalibrationProgress = Callable[[str, int, int], None]


def collect_moments(
    subject: Subject, windows: Sequence[Window], progress: CalibrationProgress
) -> list[LatentMoments]:
    """The moments of each layer."""
    transform = plain_transform(NoTransform(), subject.config.num_layers, subject.latent.kv_rank)
    plan = LatentPlan(Replicated(LatentScheme(basis=transform.id), OneRank()), transform)
    values = _ValueMatrices(subject.latent)

    def loading(done: int, total: int) -> None:
        progress("Loading the model", done, total)

    model = subject.load(plan, loading, values.watch)
    width, device = subject.latent.kv_rank, subject.device
    sums = [MomentSums(width, device) for _ in range(subject.config.num_layers)]
    probe = _Probe(subject.cache(plan), model, sums)
    for done, window in enumerate(windows):
        progress("Collecting latents", done, len(windows))
        _run(model, probe, window, subject.blocks)
    progress("Collecting latents", len(windows), len(windows))
    return [found.finish(values.of(layer)) for layer, found in enumerate(sums)]


class _Probe(TiledLatentAttention):
    """A kernel that adds up what it is given."""

    def __init__(self, cache: KVCache, model: Model, sums: Sequence[MomentSums]) -> None:
        super().__init__(cache, latent_heads(model.config), model.placement.latent_plan.sharing)
        self._sums = sums

    def write(self, layer: int, latents: Tensor, rope: Tensor) -> None:
        """See the base class."""
        self._sums[layer].add_latents(latents[: self.generated.rows.num_rows])
        super().write(layer, latents, rope)

    def attend_generated(self, layer: int, queries: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the base class."""
        absorbed = queries[: self.generated.rows.num_rows, :, : self._heads.kv_rank]
        self._sums[layer].add_queries(absorbed)
        return super().attend_generated(layer, queries)


class _ValueMatrices:
    """Keeps, of the tensors of a checkpoint, what values are made with."""

    def __init__(self, latent: LatentConfig) -> None:
        self._latent = latent
        self._kept: dict[str, Tensor] = {}

    def watch(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Let tensors pass."""
        for name, tensor in tensors:
            if name.endswith((_EXPAND, _GAIN)):
                self._kept[name] = tensor.clone()
            yield name, tensor

    def of(self, layer: int) -> Tensor:
        """float64 [heads * value_dim, kv_rank], W_UV of all heads for latents without gain."""
        expand = self._kept[f"model.layers.{layer}.{_EXPAND}"].double()
        gain = self._kept[f"model.layers.{layer}.{_GAIN}"].double()
        nope, rank = self._latent.nope_dim, self._latent.kv_rank
        heads = (expand * gain).view(-1, nope + self._latent.value_dim, rank)
        return heads[:, nope:].reshape(-1, rank)


_EXPAND = "self_attn.kv_b_proj.weight"
_GAIN = "self_attn.kv_a_layernorm.weight"


@torch.inference_mode()
def _run(model: Model, probe: _Probe, window: Window, blocks: Sequence[int]) -> None:
    """One step over a whole window; no logits."""
    group = SequenceRows(window, start=0, block_ids=blocks, samples=False, prompt_tokens=0)
    rows = FlatRows.build([group], BLOCK_SIZE)
    probe.prepare(rows)
    probe.cache.clear(rows.opened_blocks(probe.share))
    size, count = model.row_tile.round_up(rows.num_rows), rows.num_rows
    inputs = torch.zeros(2, size, dtype=torch.int64, device=model.device)
    inputs[:, :count] = torch.from_numpy(np.stack((np.array(window), rows.positions)))
    batch = RowBatch(inputs[0], inputs[1], count, count)
    model.begin(batch, probe).run_layers(0, model.config.num_layers)
