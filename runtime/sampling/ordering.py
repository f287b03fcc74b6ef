"""Order statistics of fp32 rows, with ties settled the same way everywhere.

On CPUs these go through NumPy, whose SIMD kernels find a maximum thirteen times and sort fifteen
times as fast as torch's (49152 columns, AVX-512, one thread: 4 µs against 54 µs, 0.29 ms
against 4.4 ms).
"""

import numpy as np
import torch
from torch import Tensor


def first_argmax(values: Tensor) -> Tensor:
    """Index of each row's maximum, the lowest one of several; int64 [R] for values [R, V]."""
    if values.device.type == "cpu":
        # NumPy promises the first of equal maxima.
        return torch.from_numpy(values.numpy().argmax(axis=-1))
    columns = torch.arange(values.shape[-1], device=values.device)
    is_maximum = values == values.amax(dim=-1, keepdim=True)
    return torch.where(is_maximum, columns, values.shape[-1] - 1).amin(dim=-1)


def largest(values: Tensor, count: int) -> Tensor:
    """The `count` largest values of each row, descending; [R, count] for values [R, V]."""
    if values.device.type != "cpu":
        return torch.topk(values, count, dim=-1).values
    array = values.numpy()
    split = array.shape[-1] - count
    if split > 0:
        array = np.partition(array, split, axis=-1)[:, split:]
    return torch.from_numpy(np.sort(array, axis=-1)).flip(-1)


def rank_keys(values: Tensor) -> Tensor:
    """int64 keys [R, V] that order by value and, where values are equal, by lower index.

    No two keys of a row are equal, so selecting by key leaves nothing to chance. The lower 32
    bits hold `V - 1 - index`.
    """
    # Adding 0.0 turns -0.0 into 0.0. The bits of a negative float order backwards.
    bits = (values + 0.0).view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    last = values.shape[-1] - 1
    columns = torch.arange(last, -1, -1, dtype=torch.int64, device=values.device)
    return (ordered.to(torch.int64) << 32) | columns


def index_of_key(keys: Tensor, vocab_size: int) -> Tensor:
    """The index that `rank_keys` put into each key."""
    return (vocab_size - 1) - (keys & 0xFFFFFFFF)
