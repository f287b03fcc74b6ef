"""The collectives of ranks: which bits they give, and that they give everything back."""

import gc
from concurrent.futures import Future

import pytest
import torch
from tests.support.link_pairs import resources
from tests.support.rank_groups import (
    WORKER,
    grouped,
    ranks_config,
    sum_in_order,
    uneven_parts,
)
from torch import Tensor

from twinflow.parallel.links.store import MemoryStore
from twinflow.parallel.ranks.base import OneRank, RankGroup, Seat
from twinflow.parallel.ranks.distributed import DistributedRanks, ordered_sum
from twinflow.parallel.ranks.meshes import RANK_MESHES, by_backend
from twinflow.parallel.ranks.meshes.gloo import GlooMesh
from twinflow.protos.errors import ConfigError, RankLost

ALWAYS, NEVER = 0, 1 << 40
SHAPES = [(1, 8), (3, 48), (7, 33), (64, 96)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("sliced_from_bytes", [ALWAYS, NEVER])
def test_a_sum_is_that_in_the_order_of_the_ranks_on_every_rank(
    size: int, sliced_from_bytes: int
) -> None:
    with grouped(size, sliced_from_bytes=sliced_from_bytes) as group:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for seed, shape in enumerate(SHAPES):
                parts = uneven_parts(size, *shape, dtype=dtype, seed=seed)
                for total in group.all_reduce(parts):
                    assert same_bits(total, sum_in_order(parts))


def test_another_order_gives_other_bits() -> None:
    parts = uneven_parts(4, 64, 96)
    assert not torch.equal(sum_in_order(parts), sum_in_order(parts[::-1]))
    half = uneven_parts(4, 64, 96, dtype=torch.bfloat16)
    rounded_each_time = half[0] + half[1] + half[2] + half[3]
    assert not torch.equal(sum_in_order(half), rounded_each_time)


def test_the_sum_of_a_row_does_not_depend_on_the_other_rows() -> None:
    parts = uneven_parts(4, 257, 64)
    with grouped(4, sliced_from_bytes=16 * 1024) as group:  # 64 rows and more are sliced
        whole = group.all_reduce(parts)[0]
        for first, count in ((0, 1), (5, 63), (100, 64), (256, 1), (1, 256)):
            piece = group.all_reduce([part[first : first + count] for part in parts])[0]
            assert same_bits(piece, whole[first : first + count])


@pytest.mark.parametrize("size", [2, 4])
def test_parts_are_gathered_side_by_side(size: int) -> None:
    with grouped(size) as group:
        for rows, width in (*SHAPES, (0, 5), (4, 0)):
            parts = uneven_parts(size, rows, width)
            for gathered in group.all(lambda ranks, p=parts: ranks.all_gather(p[ranks.rank])):  # type: ignore[misc]
                assert same_bits(gathered, torch.cat(parts, dim=1))


@pytest.mark.parametrize("sliced_from_bytes", [ALWAYS, NEVER])
def test_neighbours_are_groups_of_their_own(sliced_from_bytes: int) -> None:
    parts = uneven_parts(4, 6, 12)
    with grouped(4, sliced_from_bytes=sliced_from_bytes) as group:
        for size in (1, 2, 4):

            def work(ranks: DistributedRanks, size: int = size) -> tuple[Tensor, Tensor, Tensor]:
                near = ranks.neighbours(size)
                assert (near.rank, near.size) == (ranks.rank % size, size)
                gathered = near.all_gather(parts[ranks.rank])
                total = near.all_reduce(parts[ranks.rank].clone())
                given = near.broadcast(parts[ranks.rank].clone(), size - 1)
                # A group within a group, and the whole one in between.
                assert same_bits(near.neighbours(1).all_gather(total), total)
                ranks.all_reduce(parts[ranks.rank].clone())
                return gathered, total, given

            for rank, (gathered, total, given) in enumerate(group.all(work)):
                first = rank - rank % size
                mine = parts[first : first + size]
                assert same_bits(gathered, torch.cat(mine, dim=1))
                assert same_bits(total, sum_in_order(mine))
                assert same_bits(given, mine[-1])
        with pytest.raises(ConfigError, match="4 ranks cannot form groups of 3"):
            group[0].neighbours(3)
    assert Seat(3, 4).neighbours(2).rank == 1
    with pytest.raises(ConfigError, match="1 ranks cannot form groups of 2"):
        OneRank().neighbours(2)


def test_parts_may_be_views_and_empty_and_of_either_mode() -> None:
    parts = uneven_parts(2, 6, 10)
    expected = sum_in_order(parts)

    def reduce(ranks: DistributedRanks) -> list[Tensor]:
        part = parts[ranks.rank]
        columns = part.t().contiguous().t()
        sums = [ranks.all_reduce(columns)]
        with torch.inference_mode():
            sums.append(ranks.all_reduce(part * 1.0))
        sums.append(ranks.all_reduce(part * 1.0))
        assert ranks.all_reduce(part[:0]).shape == (0, 10)
        ranks.settle()
        return sums

    with grouped(2) as group:
        for sums in group.all(reduce):
            assert all(same_bits(total, expected) for total in sums)


def test_one_process_may_be_a_group() -> None:
    part = torch.arange(6.0).view(2, 3)
    distributed = DistributedRanks.connect(ranks_config(0, 1), MemoryStore("ranks"))
    for ranks in (OneRank(), distributed):
        assert isinstance(ranks, RankGroup)
        assert torch.equal(ranks.all_reduce(part.clone()), part)
        assert torch.equal(ranks.all_gather(part), part)
    distributed.close()


def test_a_missing_rank_is_named_with_the_collective_and_the_group_is_broken_for_ever() -> None:
    part = torch.ones(2, 4)
    with grouped(3, deadline_s=0.5) as group:
        late = [group.pool.submit(group[rank].all_reduce, part.clone()) for rank in (0, 2)]
        for rank, future in zip((0, 2), late, strict=True):
            message = f"rank {rank} of {WORKER} lost rank 1 in all_reduce: not done within 0.5 s"
            assert str(future.exception(20)) == message
        with pytest.raises(RankLost, match="lost rank 1 in all_reduce"):
            group[0].all_gather(part)
        with pytest.raises(RankLost, match="lost rank 1 in all_reduce"):
            group[0].settle()
        with pytest.raises(RankLost, match="rank 1 of decode-0 lost rank 0 in all_gather"):
            group[1].all_gather(part)


def test_ranks_that_are_not_in_step_yet_are_given_time() -> None:
    with grouped(2, deadline_s=0.3) as group, group[0].patience(20.0):
        early = group.pool.submit(group[0].all_gather, torch.ones(1, 2))
        with pytest.raises(TimeoutError):
            early.exception(0.6)
        group[1].all_gather(torch.ones(1, 2))
        assert torch.equal(early.result(20), torch.ones(1, 4))


def test_an_abort_wakes_whoever_waits_and_says_why() -> None:
    with grouped(4, deadline_s=60.0) as group:
        waiting: Future[Tensor] = group.pool.submit(group[0].all_reduce, torch.ones(2, 4))
        while not waiting.running():
            pass
        group[0].abort(RankLost("rank 3 was seen to die"))
        assert str(waiting.exception(20)) == "rank 3 was seen to die"
        for rank in (1, 2, 3):  # every connection of rank 0 is closed
            with pytest.raises(RankLost, match=f"rank {rank} of decode-0 lost rank 0"):
                group[rank].all_reduce(torch.ones(2, 4))


def test_ranks_that_do_not_come_are_not_waited_for_for_ever() -> None:
    store = MemoryStore("ranks")
    with pytest.raises(RankLost, match=r"rank 0 of decode-0: rank 1 did not come within 0\.3 s"):
        DistributedRanks.connect(ranks_config(0, 2, connect_s=0.3), store)
    store.set("hello/1", b"")  # it came, and died before it connected
    with pytest.raises(RankLost, match="rank 0 of decode-0 did not connect with the others"):
        DistributedRanks.connect(ranks_config(0, 2, connect_s=0.3), store)


def test_closing_gives_back_connections_and_threads() -> None:
    with grouped(2):
        pass  # what libraries open once
    gc.collect()
    before = resources()
    for _ in range(2):
        with grouped(4, deadline_s=0.2) as group:
            group.all_reduce(uneven_parts(4, 5, 8))
            with pytest.raises(RankLost):
                group[0].all_reduce(torch.ones(2, 4))
    gc.collect()
    assert resources() == before


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rank is 2: a group of 2 has 0\.\.1"):
        ranks_config(2, 2)
    with pytest.raises(ConfigError, match="deadline_s is 0"):
        ranks_config(0, 2, deadline_s=0)
    with pytest.raises(ValueError, match="two meshes claim the backend 'gloo'"):
        by_backend([GlooMesh, GlooMesh])
    assert set(RANK_MESHES) == {"gloo", "nccl"}
    with pytest.raises(RankLost, match="nccl need a CUDA build of torch"):
        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
        DistributedRanks.connect(ranks_config(0, 1, backend="nccl"), MemoryStore("ranks"))


def test_an_ordered_sum_may_end_in_any_of_its_parts() -> None:
    for size in (2, 3, 5):
        for target in range(size):
            parts = uneven_parts(size, 3, 9, seed=target)
            expected = sum_in_order(parts)
            assert same_bits(ordered_sum(parts, out=parts[target]), expected)
