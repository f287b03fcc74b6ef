"""What a model needs to know to compute latent attention on one rank."""

from dataclasses import dataclass

from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.parallel.latent.sharing.replicated import Replicated
from twinflow.parallel.latent.transforms.basis import LatentTransform
from twinflow.parallel.ranks.base import RankGroup
from twinflow.protos.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LatentPlan:
    """A rank's part of latent attention, and the bases of the latents.

    Attributes:
        sharing: the rank's part.
        transform: bases of all layers; None for latents as the model makes them.

    Raises:
        ConfigError: the scheme of the deployment has another basis.
    """

    sharing: LatentSharing
    transform: LatentTransform | None = None

    def __post_init__(self) -> None:
        found = "none" if self.transform is None else self.transform.id
        if found != self.sharing.scheme.basis:
            raise ConfigError(
                f"the latents are transformed by {found}, the deployment agreed on "
                f"{self.sharing.scheme.basis}"
            )

    @classmethod
    def plain(cls, ranks: RankGroup) -> "LatentPlan":
        """Everything on every rank, latents as the model makes them."""
        return cls(Replicated(LatentScheme(), ranks))
