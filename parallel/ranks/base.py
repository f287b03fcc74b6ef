"""What a model asks of the ranks that it is spread over.

A worker of T ranks computes one model together: each holds a part of every layer's weights, and
partial results are added up. All ranks call the same collectives in the same order. The result is
the same on every rank, bit by bit, and that of a row does not depend on how many rows there are:
parts are added in the order of the ranks, whatever the transport prefers.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from twinflow.protos.errors import ConfigError


class RankGroup(ABC):
    """The ranks of a worker as one of them sees them.

    Attributes:
        rank: which one this is, from 0.
        size: how many there are, at least 1.
    """

    def __init__(self, rank: int, size: int) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"rank {rank} is not in 0..{size - 1}")
        self.rank = rank
        self.size = size

    @abstractmethod
    def all_reduce(self, part: Tensor) -> Tensor:
        """Add up a part of every rank.

        Args:
            part: [rows, width], the same shape and dtype on every rank; may be overwritten.

        Returns:
            [rows, width]: the sum of the parts in the order of their ranks; 16-bit parts are added
            up in float32 and the sum is rounded once.

        Raises:
            RankLost: a rank did not answer within the deadline.
        """

    @abstractmethod
    def all_gather(self, part: Tensor) -> Tensor:
        """Put a part of every rank side by side.

        Args:
            part: [rows, width], the same shape and dtype on every rank.

        Returns:
            A new [rows, size * width], the parts in the order of their ranks.

        Raises:
            RankLost: a rank did not answer within the deadline.
        """

    @abstractmethod
    def broadcast(self, part: Tensor, root: int) -> Tensor:
        """Give what one rank has to all others.

        Args:
            part: [rows, width], the same shape and dtype on every rank; that of `root` is given,
                the others may be overwritten.
            root: the rank that gives.

        Returns:
            [rows, width] of `root`.

        Raises:
            RankLost: a rank did not answer within the deadline.
        """

    @abstractmethod
    def neighbours(self, size: int) -> "RankGroup":
        """A smaller group of ranks with neighbouring numbers, this one among them.

        The groups that all ranks are in this way call the same collectives at the same time.

        Args:
            size: how many they are; divides the size of this group.

        Raises:
            ConfigError: it does not.
        """

    def _neighbours(self, size: int) -> range:
        """The ranks of `neighbours`, numbered as here."""
        if size < 1 or self.size % size:
            raise ConfigError(f"{self.size} ranks cannot form groups of {size}")
        first = self.rank - self.rank % size
        return range(first, first + size)


class OneRank(RankGroup):
    """A worker that has no other ranks: every part is the whole."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def all_reduce(self, part: Tensor) -> Tensor:
        """See the base class."""
        return part

    def all_gather(self, part: Tensor) -> Tensor:
        """See the base class."""
        return part

    def broadcast(self, part: Tensor, root: int) -> Tensor:
        """See the base class."""
        return part

    def neighbours(self, size: int) -> "OneRank":
        """See the base class."""
        self._neighbours(size)
        return self


class Seat(RankGroup):
    """A place among ranks that are not connected yet: says how to cut a model, adds up nothing."""

    def all_reduce(self, part: Tensor) -> Tensor:
        """Raises RuntimeError: the ranks are not connected."""
        raise RuntimeError(f"rank {self.rank} is not connected with the other {self.size - 1}")

    def all_gather(self, part: Tensor) -> Tensor:
        """Raises RuntimeError: the ranks are not connected."""
        raise RuntimeError(f"rank {self.rank} is not connected with the other {self.size - 1}")

    def broadcast(self, part: Tensor, root: int) -> Tensor:
        """Raises RuntimeError: the ranks are not connected."""
        raise RuntimeError(f"rank {self.rank} is not connected with the other {self.size - 1}")

    def neighbours(self, size: int) -> "Seat":
        """See the base class."""
        return Seat(self.rank - self._neighbours(size).start, size)
