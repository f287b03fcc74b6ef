"""By how much a shard multiplies its part of the logits (μ).

The exact logit of a query and a latent is f = q · z, that of a shard which sees the columns S is
p = q_S · z_S. Of all multiples of p, that by

    μ = E[f p] / E[p p]

is closest to f. With queries and latents that do not depend on each other, and z about its mean,
both are sums over products of their second moments. If the shards' parts are uncorrelated, as with
principal components, μ is 1; if all say the same, it is the number of shards.
"""

import torch

from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.transforms.basis import LatentBasis
from twinflow.parallel.latent.transforms.moments import LatentMoments


def fit_logit_factors(
    basis: LatentBasis, moments: LatentMoments, scheme: LatentScheme
) -> tuple[float, ...]:
    """μ of each shard of a scheme."""
    latents = basis.matrix.mT @ moments.covariance @ basis.matrix
    queries = basis.inverse @ moments.queries @ basis.inverse.mT
    products = latents * queries
    width, common = scheme.slice_width(basis.width), scheme.common
    factors = []
    for shard in range(scheme.slices):
        first = common + shard * width
        seen = torch.tensor([*range(common), *range(first, first + width)])
        with_all, with_seen = products[:, seen].sum(), products[seen][:, seen].sum()
        factors.append(float(with_all / with_seen) if with_seen > 0 else 1.0)
    return tuple(factors)
