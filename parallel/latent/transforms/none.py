"""No transform: columns as the model was trained to have them."""

from twinflow.parallel.latent.transforms.base import TransformKind
from twinflow.parallel.latent.transforms.basis import LatentBasis, identity
from twinflow.parallel.latent.transforms.moments import LatentMoments
from twinflow.parallel.latent.transforms.plain import NO_TRANSFORM


class NoTransform(TransformKind):
    """See the module."""

    name = NO_TRANSFORM
    fits_factors = True

    def basis(self, layer: int, width: int, moments: LatentMoments | None) -> LatentBasis:
        """See the base class."""
        return identity(width)
