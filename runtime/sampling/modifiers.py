"""Minimum length, logit bias and penalties: edits of single logits, in place.

Each kind of edit is one gather and one scatter over all rows of the batch. The order is vLLM's:
minimum length, bias, repetition penalty, frequency penalty, presence penalty.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twinflow.runtime.sampling.state import IntArray, SamplingState, TokenCounts

LOGIT_LIMIT = 1e30
"""No model computes logits beyond this; below it no edit and no temperature overflows fp32."""

_TINY = float(np.finfo(np.float32).tiny)


def apply_modifiers(logits: Tensor, states: Sequence[SamplingState]) -> None:
    """Edit logits [R, V] (fp32, contiguous) as the parameters and counts of each row ask."""
    flat = logits.view(-1)
    _ban(flat, states)
    _bias(flat, states)
    _penalise(flat, states)


def _ban(flat: Tensor, states: Sequence[SamplingState]) -> None:
    rows = [(row, ids) for row, state in enumerate(states) if len(ids := state.banned_ids)]
    if rows:
        flat.index_fill_(0, _flat_index(rows, flat, len(states)), -torch.inf)


def _bias(flat: Tensor, states: Sequence[SamplingState]) -> None:
    rows = [(row, state.bias_ids) for row, state in enumerate(states) if len(state.bias_ids)]
    if rows:
        values = np.concatenate([states[row].bias_values for row, _ in rows])
        flat.index_add_(0, _flat_index(rows, flat, len(states)), _on_device(values, flat))


def _penalise(flat: Tensor, states: Sequence[SamplingState]) -> None:
    counted = [
        (row, state.counts)
        for row, state in enumerate(states)
        if state.counts is not None and len(state.counts.ids)
    ]
    if not counted:
        return
    index = _flat_index([(row, counts.ids) for row, counts in counted], flat, len(states))
    lengths = [len(counts.ids) for _, counts in counted]
    repetition, frequency, presence = (
        _on_device(np.repeat(column, lengths), flat) for column in _penalties(states, counted)
    )
    generated = _on_device(np.concatenate([counts.counts for _, counts in counted]), flat)
    values = flat.index_select(0, index)
    values = torch.where(values > 0, values / repetition, values * repetition)
    values = values - frequency * generated
    values = values - presence * (generated > 0)
    flat.index_copy_(0, index, values.clamp_(max=LOGIT_LIMIT))


def _penalties(
    states: Sequence[SamplingState], counted: Sequence[tuple[int, TokenCounts]]
) -> NDArray[np.float32]:
    """Repetition, frequency and presence penalty [3, rows] of the rows that have counts."""
    params = [states[row].params for row, _ in counted]
    table = np.array(
        [(p.repetition_penalty, p.frequency_penalty, p.presence_penalty) for p in params],
        dtype=np.float32,
    ).T
    # A penalty too small for fp32 must not become a division by zero.
    table[0] = np.maximum(table[0], _TINY)
    return table


def _flat_index(rows: Sequence[tuple[int, IntArray]], flat: Tensor, num_rows: int) -> Tensor:
    """Offsets of (row, token) pairs in the flattened logits."""
    vocab_size = flat.shape[0] // num_rows
    return _on_device(np.concatenate([ids + row * vocab_size for row, ids in rows]), flat)


def _on_device(array: NDArray[np.int64] | NDArray[np.float32], like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like.device)
