"""Log probabilities of the model's own distribution, before anything modifies it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from twinflow.runtime.outputs import TokenLogprobs
from twinflow.runtime.sampling.ordering import index_of_key, rank_keys
from twinflow.runtime.sampling.softmax import log_normalizer


class RawLogprobs:
    """A copy of some rows of the logits, taken before sampling modifies them.

    Args:
        logits: fp32 [R, V].
        counts: for each row that reports log probabilities, how many of the most likely tokens
            it reports.
    """

    def __init__(self, logits: Tensor, counts: dict[int, int]) -> None:
        self._rows = torch.tensor(list(counts), dtype=torch.int64, device=logits.device)
        self._counts = counts
        self._raw = logits.index_select(0, self._rows)

    def of(self, tokens: Tensor) -> dict[int, TokenLogprobs]:
        """Log probabilities by row, given the token chosen in every row of the batch [R]."""
        chosen = tokens.index_select(0, self._rows)
        top = self._top_ids(max(self._counts.values()))
        ids = torch.cat([chosen.unsqueeze(1), top], dim=1)
        logprobs = self._raw.gather(1, ids).double() - log_normalizer(self._raw).unsqueeze(1)
        rows = zip(self._counts.items(), ids.tolist(), logprobs.tolist(), strict=True)
        return {row: _entry(count, ids, values) for (row, count), ids, values in rows}

    def _top_ids(self, count: int) -> Tensor:
        """The most likely tokens [rows, count], most likely first, lower id first among equals."""
        vocab_size = self._raw.shape[-1]
        keys = torch.topk(rank_keys(self._raw), min(count, vocab_size), dim=-1).values
        return index_of_key(keys, vocab_size)


def _entry(count: int, ids: Sequence[int], logprobs: Sequence[float]) -> TokenLogprobs:
    """Column 0 is the chosen token, the others are the most likely ones."""
    top = tuple(zip(ids[1 : count + 1], logprobs[1 : count + 1], strict=True))
    return TokenLogprobs(token_id=ids[0], logprob=logprobs[0], top=top)
