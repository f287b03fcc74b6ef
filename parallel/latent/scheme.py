"""What the workers of a deployment agree on about the latents that they cache.

It is part of what the bytes of a KV block mean: blocks of another scheme are refused, and are not
found in a prefix cache. How a rank takes part in a scheme is said in `sharing`. Does not load
torch.
"""

from dataclasses import dataclass

from twinflow.parallel.kv_part import ROPE_PART, KVPart
from twinflow.parallel.latent.kind import LatentKind
from twinflow.protos.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentScheme:
    """How the decode workers of a deployment share latents, and in which basis these are.

    Attributes:
        kind: `replicated`, each rank caches all of every token; `dcp`, ranks share the blocks of
            a sequence; `tpla`, ranks share the columns of the latents.
        shards: ranks that share one cache.
        common: tpla only: leading columns that all shards hold.
        basis: id of the basis of the latents.
        exact_layers: tpla only: layers in which the shards add up their scores, in rising order;
            generated tokens attend exactly there.
    """

    kind: LatentKind = "replicated"
    shards: int = 1
    common: int = 0
    basis: str = "none"
    exact_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.shards < 1 or (self.kind == "replicated" and self.shards > 1):
            raise ConfigError(f"latents cannot be {self.kind} over {self.shards} shards")
        if self.common < 0 or (self.common and self.kind != "tpla"):
            raise ConfigError(f"{self.common} common columns of {self.kind} latents")
        layers = self.exact_layers
        if layers and (self.kind != "tpla" or layers[0] < 0 or sorted({*layers}) != [*layers]):
            raise ConfigError(f"exact layers {layers} of {self.kind} latents")

    @property
    def slices(self) -> int:
        """Pieces that the columns of a latent are cut into."""
        return self.shards if self.kind == "tpla" else 1

    @property
    def block_shards(self) -> int:
        """Ranks that the blocks of a sequence are dealt out to."""
        return self.shards if self.kind == "dcp" else 1

    @property
    def meaning(self) -> str:
        """What a KV layout says of it. Rotary pairs lie half a head apart."""
        exact = ",".join(map(str, self.exact_layers)) or "-"
        return f"latents/{self.kind}/{self.shards}/{self.common}/{self.basis}/{exact}"

    def slice_width(self, kv_rank: int) -> int:
        """Columns of one slice.

        Raises:
            ConfigError: the columns cannot be cut evenly.
        """
        width, rest = divmod(kv_rank - self.common, self.slices)
        if rest or width < 1:
            raise ConfigError(
                f"latents of {kv_rank} columns cannot be cut into {self.slices} slices behind "
                f"{self.common} common columns; use a number of shards that divides them"
            )
        return width

    def check_ranks(self, count: int) -> None:
        """Refuse a worker whose ranks cannot form groups that share a cache.

        Raises:
            ConfigError: some of its `count` ranks would be left over.
        """
        if count % self.shards:
            raise ConfigError(
                f"--mla-shards {self.shards}: must divide the number of ranks of a worker, which "
                f"is {count}; see --tensor-parallel-size"
            )

    def parts(self, kv_rank: int, rope_dim: int) -> tuple[KVPart, ...]:
        """The parts of a page: the common columns, if any, the slices, and the rotary key."""
        width = self.slice_width(kv_rank)
        common = (KVPart(COMMON_PART, 1, self.common),) if self.common else ()
        slices = tuple(KVPart(self.slice_name(i), 1, width) for i in range(self.slices))
        return (*common, *slices, KVPart(ROPE_PART, 1, rope_dim))

    def slice_name(self, index: int) -> str:
        """Name of the part that is one slice."""
        return f"latent {index}/{self.slices}"


COMMON_PART = "latent common"
