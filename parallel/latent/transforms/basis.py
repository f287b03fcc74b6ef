"""In which basis the latents of a layer are cached.

A latent c (normalised, without gain; a row vector of C columns) is cached as z = c A. Whatever
maps latents to keys and values then maps them by A⁻ᵀ first:

    W_UK' = W_UK A⁻ᵀ        W_UV' = W_UV A⁻ᵀ        so that z W'ᵀ = c Wᵀ

which changes nothing as long as all columns are used. Any invertible A will do, because the norm
is taken before; an orthogonal A commutes with it and can be part of the projection that makes c.
All of it is computed in float64.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Largest element by which a matrix times its inverse may miss the identity.
_INVERSE_TOLERANCE = 1e-8


@dataclass(frozen=True, slots=True)
class LatentBasis:
    """The basis of one layer.

    Attributes:
        matrix: float64 [C, C], A: columns of z, the most important first.
        inverse: float64 [C, C], A⁻¹.
        orthogonal: A⁻¹ is Aᵀ.
        logit_factors: for each shard of tensor-parallel latent attention, what its part of the
            logits without position is multiplied by (μ); 1 where there is none.

    Raises:
        ValueError: these are not finite square matrices, each the inverse of the other, or the
            basis is not orthogonal though it says so.
    """

    matrix: Tensor
    inverse: Tensor
    orthogonal: bool
    logit_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        width = self.width
        if self.matrix.shape != (width, width) or self.inverse.shape != (width, width):
            raise ValueError(
                f"a basis and its inverse have the shapes {tuple(self.matrix.shape)} and "
                f"{tuple(self.inverse.shape)}"
            )
        found = self.matrix.double() @ self.inverse.double()
        error = (found - torch.eye(width, dtype=torch.float64, device=found.device)).abs().max()
        if not error <= _INVERSE_TOLERANCE:  # nor NaN
            raise ValueError(f"a basis times its inverse misses the identity by {error:.1e}")
        if self.orthogonal and not torch.equal(self.inverse, self.matrix.mT):
            raise ValueError("the inverse of an orthogonal basis is not its transpose")

    @property
    def width(self) -> int:
        """C, columns of a latent."""
        return len(self.matrix)

    @classmethod
    def of_orthogonal(cls, matrix: Tensor) -> "LatentBasis":
        """A basis whose inverse is its transpose.

        Raises:
            ValueError: the matrix is not orthogonal.
        """
        matrix = matrix.double().contiguous()
        return cls(matrix, matrix.mT.contiguous(), orthogonal=True)

    def logit_factor(self, shard: int) -> float:
        """μ of a shard."""
        return self.logit_factors[shard] if shard < len(self.logit_factors) else 1.0


class LatentTransform:
    """The bases of all layers of a model.

    Args:
        kind: how they were found.
        bases: of each layer.

    Attributes:
        kind: how they were found.
        id: names the kind and, by a digest over every byte, the bases. It is part of what cached
            latents mean, and so of the KV layout, of cache keys and of hand-offs.
    """

    def __init__(self, kind: str, bases: Sequence[LatentBasis]) -> None:
        self._bases = tuple(bases)
        digest = hashlib.sha256(kind.encode())
        for basis in self._bases:
            shape = (basis.width, basis.orthogonal, basis.logit_factors)
            digest.update(repr(shape).encode())
            for matrix in (basis.matrix, basis.inverse):
                digest.update(matrix.double().cpu().contiguous().numpy().tobytes())
        self.kind = kind
        self.id = f"{kind}-{digest.hexdigest()[:12]}"

    @property
    def width(self) -> int:
        """C, columns of a latent."""
        return self._bases[0].width

    def basis(self, layer: int) -> LatentBasis:
        """The basis of a layer.

        Raises:
            IndexError: there is no such layer.
        """
        return self._bases[layer]

    def __len__(self) -> int:
        return len(self._bases)


def identity(width: int) -> LatentBasis:
    """Latents as they are, but for the gain of their norm."""
    return LatentBasis.of_orthogonal(torch.eye(width, dtype=torch.float64))
