"""Embedding and output head, cut along the vocabulary.

Each rank holds the rows of consecutive tokens, the same number on every rank: the last ones are
filled up with zeros. Tied embeddings are one weight for both.
"""

import torch
from torch import Tensor

from twinflow.parallel.ranks.base import RankGroup
from twinflow.runtime.models.linear import Linear


class Embedding:
    """Vectors of tokens.

    Args:
        weight: [tokens of this rank, hidden].
        ranks: those that share the vocabulary.
        dtype: of the vectors that come out.
    """

    def __init__(self, weight: Tensor, ranks: RankGroup, dtype: torch.dtype) -> None:
        self._weight = weight
        self._dtype = dtype
        self._ranks = ranks
        self._first = ranks.rank * len(weight)

    def __call__(self, token_ids: Tensor) -> Tensor:
        """int64 [rows] to a new [rows, hidden], the same on all ranks."""
        if self._ranks.size == 1:
            return self._weight.index_select(0, token_ids).to(self._dtype)
        index = token_ids - self._first
        foreign = (index < 0) | (index >= len(self._weight))
        part = self._weight.index_select(0, index.masked_fill_(foreign, 0)).to(self._dtype)
        return self._ranks.all_reduce(part.masked_fill_(foreign[:, None], 0.0))


class Head:
    """Scores of all tokens.

    Args:
        linear: from hidden to the tokens of this rank.
        ranks: those that share the vocabulary.
        vocab_size: tokens that there are.
    """

    def __init__(self, linear: Linear, ranks: RankGroup, vocab_size: int) -> None:
        self._linear = linear
        self._ranks = ranks
        self._vocab_size = vocab_size

    def __call__(self, rows: Tensor) -> Tensor:
        """[rows, hidden] to contiguous float32 [rows, vocab_size], the same on all ranks."""
        logits = self._ranks.all_gather(self._linear(rows))
        return logits[:, : self._vocab_size].float().contiguous()
