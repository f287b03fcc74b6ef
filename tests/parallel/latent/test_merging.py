"""Means over parts of a sequence merge into the mean over all of it."""

import pytest
import torch
from torch import Tensor

from twinflow.parallel.latent.merging import merge_means
from twinflow.parallel.ranks.base import RankGroup
from twinflow.parallel.ranks.threads import run_ranks


def attend(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [rows, heads, width] and log-sum-exp [rows, heads]; of nothing: 0 and -inf."""
    if scores.shape[2] == 0:
        return torch.zeros(*scores.shape[:2], values.shape[1]), torch.full(
            scores.shape[:2], -torch.inf
        )
    return scores.softmax(-1) @ values, scores.logsumexp(-1)


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("owners", [[0, 1], [1, 1], [2, 0, 1, 3], [3, 3]])
def test_merged_means_are_the_mean_of_all(owners: list[int], scale: float) -> None:
    """Key block i is with rank owners[i]; some ranks have none."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 5, 4 * len(owners), generator=generator) * scale
    values = torch.randn(4 * len(owners), 6, generator=generator)
    expected, _ = attend(scores, values)
    of_key = torch.tensor(owners).repeat_interleave(4)

    def work(ranks: RankGroup) -> Tensor:
        mine = of_key == ranks.rank
        mean, lse = attend(scores[..., mine], values[mine])
        return merge_means(mean, lse, ranks)

    first, *others = run_ranks(4, work)
    torch.testing.assert_close(first, expected, atol=1e-6, rtol=1e-5)
    for other in others:
        assert torch.equal(other, first)


def test_rows_that_no_rank_saw_anything_of_are_zero() -> None:
    def work(ranks: RankGroup) -> Tensor:
        return merge_means(torch.zeros(2, 3, 4), torch.full((2, 3), -torch.inf), ranks)

    assert torch.equal(run_ranks(2, work)[0], torch.zeros(2, 3, 4))
