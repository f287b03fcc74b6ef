"""The ranks of a worker as whoever drafts on rank 0 sees them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.runtime.model_runner import ModelRunner
from twinflow.runtime.runner import DraftRunner
from twinflow.runtime.speculative.layer_parallel.share import DraftShare


class DraftTeam(Protocol):
    """Has other ranks load shares of a drafter and compute them."""

    @property
    def size(self) -> int:
        """Ranks of the worker, rank 0 included."""
        ...

    @property
    def served(self) -> ModelRunner | None:
        """This rank's share of the model that is served; None if it is not to be had."""
        ...

    def loading(self, share: DraftShare) -> AbstractContextManager[RankGroup]:
        """Have the other ranks load their shares, in place of those they have; rank 0 loads its
        own meanwhile.

        Raises:
            RankLost: a rank is gone.
        """
        ...

    def runner(self, own: ModelRunner, share: DraftShare) -> DraftRunner:
        """A runner that computes a drafter together with the others.

        Args:
            own: of rank 0's share.
            share: what all have loaded.
        """
        ...


class Alone:
    """A `DraftTeam` without other ranks.

    Args:
        served: see `DraftTeam.served`.
    """

    size = 1

    def __init__(self, served: ModelRunner | None = None) -> None:
        self.served = served

    @contextmanager
    def loading(self, share: DraftShare) -> Iterator[RankGroup]:
        """See `DraftTeam.loading`."""
        yield OneRank()

    def runner(self, own: ModelRunner, share: DraftShare) -> DraftRunner:
        """See `DraftTeam.runner`."""
        return own
