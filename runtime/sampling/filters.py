"""min-p, top-k and top-p as one threshold per row.

Each filter keeps the logits that are not below a value: together they keep those not below the
largest of the three. So no row is reordered or masked in between, and tokens of equal
probability are kept or dropped together.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from twinflow.runtime.sampling.ordering import largest
from twinflow.runtime.sampling.softmax import softmax_weights, weight_bits
from twinflow.runtime.sampling_params import SamplingParams


def filters(params: SamplingParams, vocab_size: int) -> bool:
    """Whether a row with these parameters may lose tokens to a filter."""
    return params.min_p > 0.0 or 0 < params.top_k < vocab_size or params.top_p < 1.0


def keep_threshold(scaled: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Smallest logit that may still be sampled.

    Args:
        scaled: fp32 [R, V], logits divided by the temperature.
        params: one per row.

    Returns:
        fp32 [R, 1], at most the row's maximum; -inf where nothing filters.
    """
    vocab_size = scaled.shape[-1]
    by_min_p = [row for row, p in enumerate(params) if p.min_p > 0.0]
    by_top_k = [row for row, p in enumerate(params) if 0 < p.top_k < vocab_size]
    by_top_p = [row for row, p in enumerate(params) if p.top_p < 1.0]
    threshold = scaled.new_full((scaled.shape[0], 1), -math.inf)
    _raise_rows(threshold, by_min_p, lambda rows: _min_p(scaled, params, rows))
    _raise_rows(threshold, by_top_k, lambda rows: _top_k(scaled, params, rows))
    _raise_rows(threshold, by_top_p, lambda rows: _top_p(scaled, threshold, params, rows))
    return threshold


def _raise_rows(
    threshold: Tensor, rows: Sequence[int], values: Callable[[Sequence[int]], Tensor]
) -> None:
    """Raise the threshold of some rows to their values [len(rows), 1]."""
    if rows:
        index = torch.tensor(rows, device=threshold.device)
        threshold[index] = torch.maximum(threshold[index], values(rows))


def _min_p(scaled: Tensor, params: Sequence[SamplingParams], rows: Sequence[int]) -> Tensor:
    """p >= min_p * max(p) is logit >= max(logit) + log(min_p)."""
    offset = [math.log(params[row].min_p) for row in rows]
    return _take(scaled, rows).amax(dim=-1, keepdim=True) + _column(offset, scaled)


def _top_k(scaled: Tensor, params: Sequence[SamplingParams], rows: Sequence[int]) -> Tensor:
    """The k-th largest logit."""
    counts = [params[row].top_k for row in rows]
    index = torch.tensor(counts, device=scaled.device).unsqueeze(1) - 1
    return largest(_take(scaled, rows), max(counts)).gather(1, index)


def _top_p(
    scaled: Tensor, threshold: Tensor, params: Sequence[SamplingParams], rows: Sequence[int]
) -> Tensor:
    """The logit at which the mass of what the other filters keep reaches top_p of the whole."""
    ordered = largest(_take(scaled, rows), scaled.shape[-1])
    mass = softmax_weights(ordered, ordered[:, :1], weight_bits(scaled.shape[-1])).cumsum(dim=-1)
    # searchsorted wants ascending values: of the negated logits, those up to -threshold are kept.
    kept = torch.searchsorted(-ordered, -_take(threshold, rows), right=True)
    top_p = torch.tensor([[params[row].top_p] for row in rows], dtype=torch.float64)
    target = mass.gather(1, kept - 1).double() * top_p.to(scaled.device)
    # The first token at which the running sum reaches the target. fp64 rounding may push the
    # target past the last kept token, which then is the answer.
    index = torch.searchsorted(mass, target.to(torch.int64))
    return ordered.gather(1, torch.minimum(index, kept - 1))


def _take(values: Tensor, rows: Sequence[int]) -> Tensor:
    if len(rows) == values.shape[0]:
        return values
    return values.index_select(0, torch.tensor(rows, device=values.device))


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
