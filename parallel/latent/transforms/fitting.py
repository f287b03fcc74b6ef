"""Makes a transform for a scheme: a basis for each layer and, where the kind asks, factors."""

from collections.abc import Sequence
from dataclasses import replace

from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.transforms.base import TransformKind
from twinflow.parallel.latent.transforms.basis import LatentBasis, LatentTransform
from twinflow.parallel.latent.transforms.factors import fit_logit_factors
from twinflow.parallel.latent.transforms.moments import LatentMoments


def fit_transform(
    kind: TransformKind, moments: Sequence[LatentMoments], scheme: LatentScheme
) -> LatentTransform:
    """The transform of a calibrated model.

    Args:
        kind: how to find bases.
        moments: of each layer.
        scheme: its slices and common columns decide the factors.

    Raises:
        ConfigError: kind or scheme do not suit latents of that width.
    """
    return LatentTransform(
        kind.name,
        [_fit_layer(kind, layer, found, scheme) for layer, found in enumerate(moments)],
    )


def plain_transform(kind: TransformKind, num_layers: int, width: int) -> LatentTransform:
    """The transform of a model that nobody has calibrated; all factors are 1.

    Raises:
        ConfigError: the kind needs calibration, or does not suit the width.
    """
    return LatentTransform(
        kind.name, [kind.basis(layer, width, None) for layer in range(num_layers)]
    )


def _fit_layer(
    kind: TransformKind, layer: int, moments: LatentMoments, scheme: LatentScheme
) -> LatentBasis:
    basis = kind.basis(layer, moments.width, moments)
    scheme.slice_width(moments.width)
    if not kind.fits_factors or scheme.slices == 1:
        return basis
    if layer in scheme.exact_layers:  # parts that are added up make whole scores as they are
        return replace(basis, logit_factors=(1.0,) * scheme.slices)
    return replace(basis, logit_factors=fit_logit_factors(basis, moments, scheme))
