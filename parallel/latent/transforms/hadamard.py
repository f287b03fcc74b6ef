"""A randomised Hadamard matrix: every column is made of all others, so that all are alike.

Sylvester's H of C rows over √C, its rows' signs drawn at random per layer (TPLA, arXiv 2508.15881,
section 4). It needs no calibration, and helps the norm more than it helps the softmax.
"""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from twinflow.parallel.latent.transforms.base import TransformKind
from twinflow.parallel.latent.transforms.basis import LatentBasis
from twinflow.parallel.latent.transforms.moments import LatentMoments
from twinflow.parallel.latent.transforms.plain import HADAMARD, check_hadamard


class Hadamard(TransformKind):
    """See the module."""

    name = HADAMARD
    fits_factors = True

    def basis(self, layer: int, width: int, moments: LatentMoments | None) -> LatentBasis:
        """See the base class."""
        check_hadamard(width)
        return LatentBasis.of_orthogonal(_signs(layer, width)[:, None] * _sylvester(width))


def _sylvester(width: int) -> Tensor:
    """The orthogonal matrix of entries ±1/√width."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < width:
        top = torch.cat((matrix, matrix), dim=1)
        matrix = torch.cat((top, torch.cat((matrix, -matrix), dim=1)))
    return matrix / math.sqrt(width)


def _signs(layer: int, width: int) -> Tensor:
    """[width] of ±1: bits of a hash, the same on every machine and in every version of torch."""
    digest = hashlib.shake_256(f"hadamard/{layer}".encode()).digest(-(-width // 8))
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8))[:width]
    return torch.from_numpy(bits.astype(np.float64) * 2 - 1)
