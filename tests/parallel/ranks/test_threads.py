"""Ranks that are threads: the same sums as processes, and an end when one of them fails."""

import pytest
import torch
from torch import Tensor

from twinflow.parallel.ranks.base import RankGroup
from twinflow.parallel.ranks.threads import run_ranks
from twinflow.protos.errors import ConfigError, RankLost


def part(rank: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(rank)).to(dtype)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_and_rows_are_the_same_everywhere(size: int, dtype: torch.dtype) -> None:
    def work(ranks: RankGroup) -> tuple[Tensor, Tensor, Tensor]:
        own = part(ranks.rank, dtype)
        given = ranks.broadcast(own.clone(), ranks.size - 1)
        return ranks.all_reduce(own.clone()), ranks.all_gather(own), given

    total = torch.zeros(5, 7)
    for rank in range(size):
        total += part(rank, dtype).float()
    gathered = torch.cat([part(rank, dtype) for rank in range(size)], dim=1)
    for found, side_by_side, given in run_ranks(size, work):
        assert torch.equal(found, total.to(dtype))
        assert torch.equal(side_by_side, gathered)
        assert torch.equal(given, part(size - 1, dtype))


def test_neighbours_meet_among_themselves() -> None:
    def work(ranks: RankGroup) -> tuple[int, float]:
        pair = ranks.neighbours(2)
        alone = ranks.neighbours(1)
        mine = torch.full((1, 1), float(ranks.rank))
        assert alone.size == 1 and alone.all_reduce(mine.clone()) == mine
        return pair.rank, float(pair.all_reduce(mine))

    assert run_ranks(4, work) == [(0, 1.0), (1, 1.0), (0, 5.0), (1, 5.0)]
    with pytest.raises(ConfigError, match="4 ranks cannot form groups of 3"):
        run_ranks(4, lambda ranks: ranks.neighbours(3))


def test_the_rank_that_fails_is_heard_of_and_nobody_waits_for_it() -> None:
    lost = []

    def work(ranks: RankGroup) -> None:
        if ranks.rank == 1:
            raise KeyError("weights")
        try:
            ranks.neighbours(2).all_reduce(torch.ones(1, 1))
            ranks.all_reduce(torch.ones(1, 1))
        except RankLost as error:
            lost.append(error)
            raise

    with pytest.raises(KeyError, match="weights"):
        run_ranks(4, work)
    assert len(lost) == 3


def test_ranks_that_do_different_things_are_told() -> None:
    with pytest.raises(ValueError, match="disagree about the shape"):
        run_ranks(2, lambda ranks: ranks.all_reduce(torch.ones(1, 1 + ranks.rank)))
