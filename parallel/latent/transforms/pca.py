"""Principal components: the first shard gets the columns that vary most.

Eigenvectors of the covariance by falling eigenvalue (TPLA, arXiv 2508.15881, section 4). About the
mean and not about zero: a constant part of the latents adds the same to all scores, which a softmax
ignores, and comes out of every shard's weighted mean exactly.
"""

from twinflow.parallel.latent.transforms.base import TransformKind
from twinflow.parallel.latent.transforms.basis import LatentBasis
from twinflow.parallel.latent.transforms.eigen import descending
from twinflow.parallel.latent.transforms.moments import LatentMoments


class PrincipalComponents(TransformKind):
    """See the module."""

    name = "pca"
    fits_factors = False

    def basis(self, layer: int, width: int, moments: LatentMoments | None) -> LatentBasis:
        """See the base class."""
        _, vectors = descending(self.required(moments).covariance)
        return LatentBasis.of_orthogonal(vectors)
