"""How the dimensions of a model are cut among the ranks of a worker.

Says which rows, columns and heads are whose. Moving tensors is not done here.
"""

from dataclasses import dataclass

from twinflow.parallel.ranks.base import RankGroup
from twinflow.protos.errors import ConfigError
from twinflow.runtime.models.rank_count import check_heads


@dataclass(frozen=True, slots=True)
class Cut:
    """Consecutive indices [start, stop) of the `total` that a dimension has.

    Attributes:
        total: indices of the dimension.
        start: first one taken.
        stop: behind the last one taken.
    """

    total: int
    start: int
    stop: int

    @classmethod
    def whole(cls, total: int) -> "Cut":
        """All of it."""
        return cls(total, 0, total)

    @classmethod
    def none(cls, total: int) -> "Cut":
        """Nothing of it."""
        return cls(total, 0, 0)

    @property
    def size(self) -> int:
        """How many are taken."""
        return self.stop - self.start

    def scaled(self, factor: int) -> "Cut":
        """The same piece where each index is `factor` indices."""
        return Cut(self.total * factor, self.start * factor, self.stop * factor)


def even_cut(total: int, ranks: RankGroup) -> Cut:
    """The share of a rank where shares may differ by one."""
    return Cut(total, total * ranks.rank // ranks.size, total * (ranks.rank + 1) // ranks.size)


def inner_cut(total: int, ranks: RankGroup, name: str) -> Cut:
    """The share of a rank of the inner dimension of an MLP.

    Raises:
        ConfigError: some rank would have nothing; `name` says of what.
    """
    if total < ranks.size:
        raise ConfigError(f"{name} ({total}) cannot be cut for {ranks.size} ranks; use fewer ranks")
    return even_cut(total, ranks)


def padded_cut(total: int, ranks: RankGroup) -> tuple[Cut, int]:
    """The share of a rank where all shares must be of one size.

    Returns:
        What there is of the share, and the size that it is padded to.
    """
    size = -(-total // ranks.size)
    start = min(ranks.rank * size, total)
    return Cut(total, start, min(start + size, total)), size


@dataclass(frozen=True, slots=True)
class HeadCut:
    """The attention heads of a rank.

    With more ranks than KV heads, neighbouring ranks hold the same KV head and share its queries.

    Attributes:
        queries: query heads.
        keys: key/value heads.
    """

    queries: Cut
    keys: Cut

    @classmethod
    def of(cls, num_heads: int, num_kv_heads: int, ranks: RankGroup) -> "HeadCut":
        """The share of a rank.

        Raises:
            ConfigError: the heads cannot be shared evenly.
        """
        count, rank = ranks.size, ranks.rank
        check_heads(num_heads, num_kv_heads, count)
        first_key = rank * num_kv_heads // count
        keys = Cut(num_kv_heads, first_key, first_key + max(1, num_kv_heads // count))
        return cls(even_cut(num_heads, ranks), keys)
