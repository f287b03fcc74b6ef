"""Eigenvectors with what torch leaves open settled."""

import torch
from torch import Tensor


def descending(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [C] of a symmetric matrix, falling, and their vectors as columns [C, C].

    The largest entry of each vector is positive, so that equal moments give equal signs.
    """
    matrix = (matrix + matrix.mT) / 2
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * torch.where(largest < 0, -1.0, 1.0)
