"""Every rank caches everything and attends with its heads. Exact; nothing is exchanged.

This is also how prefill workers take part in any scheme: they hold all slices, in the basis of the
scheme, and hand each decode rank what it needs.
"""

from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.parallel.ranks.base import OneRank, RankGroup


class Replicated(LatentSharing):
    """See the module."""

    def __init__(self, scheme: LatentScheme, ranks: RankGroup) -> None:
        super().__init__(scheme, ranks, OneRank())

    @property
    def _slices(self) -> range:
        return range(self.scheme.slices)
