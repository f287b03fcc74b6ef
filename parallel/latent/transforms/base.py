"""How a kind of transform finds the basis of a layer."""

from abc import ABC, abstractmethod
from typing import ClassVar

from twinflow.parallel.latent.transforms.basis import LatentBasis
from twinflow.parallel.latent.transforms.moments import LatentMoments
from twinflow.protos.errors import ConfigError


class TransformKind(ABC):
    """One way.

    Class attributes:
        name: as operators write it.
        fits_factors: shards scale their logits by what fits best (see `factors`); else by 1. It
            helps where every shard sees much the same, and hurts where each sees its own.
    """

    name: ClassVar[str]
    fits_factors: ClassVar[bool]

    @abstractmethod
    def basis(self, layer: int, width: int, moments: LatentMoments | None) -> LatentBasis:
        """The basis of a layer.

        Args:
            layer: which one.
            width: columns of a latent.
            moments: of that layer; None if nobody has calibrated.

        Raises:
            ConfigError: the kind cannot do with that width, or without moments.
        """

    def required(self, moments: LatentMoments | None) -> LatentMoments:
        """The moments, for kinds that cannot do without.

        Raises:
            ConfigError: there are none.
        """
        if moments is None:
            raise ConfigError(
                f"the transform {self.name} is made from a model's own latents: run "
                f"twinflow calibrate tpla MODEL --text FILE first"
            )
        return moments
