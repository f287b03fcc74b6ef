"""Ranks in processes that die or freeze: every other rank hears of it and names the right one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from tests.support.link_peers import PEER
from tests.support.link_store import StoreServer
from tests.support.rank_peers import GROUP, RankProcess

from twinflow.parallel.links.store import StoreDirectory

pytestmark = pytest.mark.slow

DIRECT, SLICED = 1000, 4_000_000
ENDLESS = 1_000_000


@contextmanager
def processes(size: int, deadline_s: float) -> Iterator[Sequence[RankProcess]]:
    """A connected group of processes."""
    directory = StoreDirectory()
    store = directory.create(GROUP, PEER)
    server = StoreServer(directory)
    ranks = [RankProcess(server.port, rank, size, deadline_s) for rank in range(size)]
    try:
        assert [rank.line() for rank in ranks] == ["connected"] * size
        yield ranks
    finally:
        for rank in ranks:
            rank.close()
        server.close()
        store.close()


@pytest.mark.parametrize("elements", [DIRECT, SLICED])
@pytest.mark.parametrize("size", [2, 4])
def test_a_killed_rank_is_named_at_once_by_all_others(size: int, elements: int) -> None:
    with processes(size, deadline_s=300.0) as ranks:  # more than the patience of `answer`
        for rank, process in enumerate(ranks):
            process.begin(2 if rank == 1 else 3, elements)
        assert ranks[1].line() == "done"
        ranks[1].kill()
        for rank, process in enumerate(ranks):
            if rank != 1:
                assert f"rank {rank} of decode-0 lost rank 1 in all_reduce" in process.line()


@pytest.mark.parametrize("elements", [DIRECT, SLICED])
def test_a_frozen_rank_is_named_by_all_others_when_the_deadline_has_passed(elements: int) -> None:
    with processes(4, deadline_s=2.0) as ranks:
        for rank, process in enumerate(ranks):
            process.begin(2 if rank == 3 else 3, elements)
        assert ranks[3].line() == "done"
        ranks[3].freeze()
        for rank, process in enumerate(ranks[:3]):
            message = f"rank {rank} of decode-0 lost rank 3 in all_reduce: not done within 2 s"
            assert process.line() == message


@pytest.mark.parametrize("freeze", [True, False])
def test_a_rank_that_goes_in_the_middle_of_an_exchange_leaves_nobody_waiting(freeze: bool) -> None:
    with processes(3, deadline_s=2.0) as ranks:
        for process in ranks:
            process.begin(1, SLICED)
        assert [process.line() for process in ranks] == ["done"] * 3
        for process in ranks:
            process.begin(ENDLESS, SLICED)
        if freeze:
            ranks[2].freeze()
        else:
            ranks[2].kill()
        # Which of the two a rank blames depends on who gave up first.
        for rank, process in enumerate(ranks[:2]):
            assert process.line().startswith(f"rank {rank} of decode-0 lost rank ")
