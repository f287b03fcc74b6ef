"""A cache of random latents, sequences in it, and their attention in float64."""

import random
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from tests.support.latent_models import run_latent_ranks
from torch import Tensor

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.latent.plan import LatentPlan
from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.parallel.latent.sharing.replicated import Replicated
from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.runtime.attention.latent.base import LatentHeads, LatentKernel
from twinflow.runtime.attention.latent.registry import create_latent_attention
from twinflow.runtime.attention.rows import FlatRows
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.model_runner import SequenceRows


@dataclass(frozen=True)
class Piece:
    """Some rows of a sequence.

    Attributes:
        sequence: which one.
        start: position of the first row.
        count: rows.
        prompt: prompt tokens of the sequence.
    """

    sequence: int
    start: int
    count: int
    prompt: int = 0


@dataclass(frozen=True)
class JoinedScores:
    """Ranks that hold columns and add up their scores, and what they should find.

    Attributes:
        heads: sizes of the model.
        lengths: of the sequences; the last three rows of each attend.
        common: columns that both ranks hold.
        settings: further arguments of `LatentBench`.
    """

    heads: LatentHeads
    lengths: tuple[int, ...]
    common: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def pieces(self) -> list[Piece]:
        """The rows that attend."""
        return [Piece(s, max(0, n - 3), min(n, 3)) for s, n in enumerate(self.lengths)]

    def check(self, tolerance: float) -> None:
        """Each rank's means must be its columns of the exact ones."""
        whole = self._whole()
        expected = [whole.expected_generated(p.sequence, p.start)[0] for p in self.pieces]
        for columns, found in self.found():
            for rows, mean in zip(found, expected, strict=True):
                wanted = mean[..., columns]
                torch.testing.assert_close(
                    rows.double().cpu(), wanted, atol=tolerance, rtol=tolerance
                )

    def found(self) -> list[tuple[list[int], list[Tensor]]]:
        """Of each rank, its columns and the means of each piece."""
        scheme = LatentScheme(kind="tpla", shards=2, common=self.common, exact_layers=(1,))
        return run_latent_ranks(2, scheme, self._work)

    def _work(self, _ranks: RankGroup, plan: LatentPlan) -> tuple[list[int], list[Tensor]]:
        bench = LatentBench([*self.lengths], self.heads, plan.sharing, **self.settings)
        rank = self.heads.kv_rank
        columns = [c for held in plan.sharing.columns(rank) for c in held]
        rope = range(rank, rank + self.heads.rope_dim)
        bench.absorbed = [queries[..., [*columns, *rope]] for queries in bench.absorbed]
        return columns, bench.generated(self.pieces)[0]

    def _whole(self) -> "LatentBench":
        """Of one rank that holds what is stored, as it is stored."""
        bench = LatentBench([*self.lengths], self.heads, **self.settings)
        stored = bench.cache.layout.torch_dtype
        bench.latents = [latents.to(stored).float() for latents in bench.latents]
        bench.rope = [rope.to(stored).float() for rope in bench.rope]
        return bench


class LatentBench:
    """One rank's kernel over some sequences.

    Everything is the same for the same lengths and sizes, whatever part of it the rank holds.
    """

    def __init__(
        self,
        lengths: list[int],
        heads: LatentHeads,
        sharing: LatentSharing | None = None,
        block_size: int = 16,
        dtype: str = "float32",
        device: str = "cpu",
        kernel: str = "tiled",
    ) -> None:
        self.heads = heads
        self.sharing = sharing or Replicated(LatentScheme(), OneRank())
        generator = torch.Generator().manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.latents = [normal(length, heads.kv_rank) for length in lengths]
        self.rope = [normal(length, heads.rope_dim) for length in lengths]
        scale = (heads.kv_rank + heads.rope_dim) ** -0.5
        width = heads.kv_rank + heads.rope_dim
        self.absorbed = [normal(n, heads.num_heads, width) * 2 * scale for n in lengths]
        self.queries = [
            normal(n, heads.num_heads, heads.key_dim) * 2 * heads.key_dim**-0.5 for n in lengths
        ]
        outs = heads.num_heads * (heads.nope_dim + heads.value_dim)
        self.expand = normal(outs, heads.kv_rank) * heads.kv_rank**-0.5
        self.kernel = self._fill(lengths, block_size, dtype, device, kernel)

    def _fill(
        self, lengths: list[int], block_size: int, dtype: str, device: str, kernel: str
    ) -> LatentKernel:
        """Lay the sequences out in shuffled blocks, as the kernel itself writes them."""
        share = self.sharing.block_share(block_size)
        counts = [-(-length // share.tokens_per_entry) for length in lengths]
        order = list(range(1, sum(counts) + 1))
        random.Random(2).shuffle(order)
        blocks = iter(order)
        self.tables = [[next(blocks) for _ in range(count)] for count in counts]
        self.share = share
        scheme, heads = self.sharing.scheme, self.heads
        whole = KVLayout(
            2, block_size, dtype, scheme.parts(heads.kv_rank, heads.rope_dim), scheme.meaning
        )
        cache = KVCache(whole.only(self.sharing.part_names()), len(order) + 1, torch.device(device))
        self.cache = cache
        found = create_latent_attention(kernel, cache, heads, self.sharing)
        cache.data.fill_(float("nan"))  # nobody may look at what nobody wrote
        columns = [c for held in self.sharing.columns(heads.kv_rank) for c in held]
        for sequence, (latents, rope) in enumerate(zip(self.latents, self.rope, strict=True)):
            rows = self.rows([Piece(sequence, 0, len(latents))])
            cache.clear(rows.opened_blocks(share))
            found.prepare(rows)
            to = cache.data
            found.write(1, latents[:, columns].to(to), rope.to(to))
        return found

    def rows(self, pieces: list[Piece]) -> FlatRows:
        """The rows of a step."""
        groups = [
            SequenceRows([0] * p.count, p.start, self.tables[p.sequence], True, p.prompt)
            for p in pieces
        ]
        return FlatRows.build(groups, self.share.tokens_per_entry)

    def generated(self, pieces: list[Piece]) -> tuple[list[Tensor], list[Tensor] | None]:
        """Absorbed attention of some rows in one step: means, and log-sum-exps if there are."""
        self.kernel.prepare(self.rows(pieces))
        queries = torch.cat([self._part(self.absorbed, piece) for piece in pieces])
        mean, lse = self.kernel.attend_generated(1, queries.to(self.cache.data.device))
        counts = [piece.count for piece in pieces]
        split = list(torch.split(mean.clone(), counts))
        return split, None if lse is None else list(torch.split(lse.clone(), counts))

    def prompt(self, pieces: list[Piece]) -> list[Tensor]:
        """Expanded attention of some rows in one step."""
        self.kernel.prepare(self.rows(pieces))
        queries = torch.cat([self._part(self.queries, piece) for piece in pieces])
        group = self.heads.expanded_heads(self.heads.num_heads)
        rows = group * (self.heads.nope_dim + self.heads.value_dim)
        to = self.cache.data
        expansions = [partial(F.linear, weight=weight.to(to)) for weight in self.expand.split(rows)]
        found = self.kernel.attend_prompt(1, queries.to(to.device), expansions)
        return list(torch.split(found.clone(), [piece.count for piece in pieces]))

    def expected_generated(self, sequence: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """Mean of latents and log-sum-exp of the rows of a sequence from `first` on."""
        keys = torch.cat((self.latents[sequence], self.rope[sequence]), 1).double()
        queries = self.absorbed[sequence][first:].double()
        scores = torch.einsum("qhd,kd->hqk", queries, keys)
        masked = _causal(scores)
        mean = masked.softmax(-1) @ keys[:, : self.heads.kv_rank]
        return mean.transpose(0, 1), masked.logsumexp(-1).T

    def expected_prompt(self, sequence: int) -> Tensor:
        """Attention of all rows of a sequence."""
        latents, heads = self.latents[sequence].double(), self.heads
        expanded = (latents @ self.expand.double().T).view(len(latents), heads.num_heads, -1)
        nope, values = expanded.split([heads.nope_dim, heads.value_dim], dim=2)
        queries = self.queries[sequence].double()
        scores = torch.einsum("qhd,khd->hqk", queries[..., : heads.nope_dim], nope)
        scores += torch.einsum(
            "qhd,kd->hqk", queries[..., heads.nope_dim :], self.rope[sequence].double()
        )
        return torch.einsum("hqk,khv->qhv", _causal(scores).softmax(-1), values)

    def _part(self, rows: list[Tensor], piece: Piece) -> Tensor:
        return rows[piece.sequence][piece.start : piece.start + piece.count]


def _causal(scores: Tensor) -> Tensor:
    rows, tokens = scores.shape[1:]
    hidden = torch.ones((rows, tokens), dtype=torch.bool).triu(1 + tokens - rows)
    return scores.masked_fill(hidden, -torch.inf)
