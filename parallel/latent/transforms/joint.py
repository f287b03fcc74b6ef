"""Principal components of what is done with the latents: in scores and in values together.

A direction matters as much as queries and value matrices make of it. With Sq the second moment of
absorbed queries, Sv that of the value matrices and Sc the covariance of latents,

    M = Sq / tr(Sq Sc) + Sv / tr(Sv Sc)
    M^½ Sc M^½ = W Λ Wᵀ, falling        A = M^½ W        A⁻¹ = Wᵀ M^-½

The columns of z = c A have the variances Λ, and are uncorrelated, in the metric M. A is not
orthogonal, which is why the norm must be taken before (see `basis`).
"""

import torch
from torch import Tensor

from twinflow.parallel.latent.transforms.base import TransformKind
from twinflow.parallel.latent.transforms.basis import LatentBasis
from twinflow.parallel.latent.transforms.eigen import descending
from twinflow.parallel.latent.transforms.moments import LatentMoments

# Directions that nobody reads get this share of the mean eigenvalue of M, so that it has an
# inverse.
_FLOOR = 1e-8


class Joint(TransformKind):
    """See the module."""

    name = "joint"
    fits_factors = False

    def basis(self, layer: int, width: int, moments: LatentMoments | None) -> LatentBasis:
        """See the base class."""
        found = self.required(moments)
        read = _share(found.queries, found.covariance) + _share(found.values, found.covariance)
        strengths, axes = descending(read)
        roots = strengths.clamp_min(_FLOOR * float(strengths.mean())).sqrt()
        root = axes * roots @ axes.mT
        _, vectors = descending(root @ found.covariance @ root)
        inverse = vectors.mT @ (axes / roots @ axes.mT)
        return LatentBasis(root @ vectors, inverse, orthogonal=False)


def _share(readers: Tensor, covariance: Tensor) -> Tensor:
    """Readers scaled such that what they read of the latents has variance 1 in total."""
    total = float((readers * covariance).sum())
    return readers / total if total > 0 else torch.eye(len(readers), dtype=readers.dtype)
