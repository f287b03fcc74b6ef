"""Rank 0 tells the others about hand-offs, and believes none of them before all are quiet."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from twinflow.protos.errors import HandoffError, RankLost, StaleLink
from twinflow.workers.handoff.fetching import Tally
from twinflow.workers.handoff.orders import (
    KIND,
    Answer,
    Drop,
    Dropped,
    Fetch,
    Fetched,
    GiveUp,
    Hold,
    Order,
    encode,
    order_of,
)
from twinflow.workers.handoff.others import OtherRanks

FETCH = Fetch("t", b"", 0, 2, b"", 1000, False)
PATIENCE_S = 0.05


class Team:
    """A leader of three ranks whose followers answer when the test says so."""

    size = 3

    def __init__(self) -> None:
        self.told: list[Order] = []
        self.failures: list[RankLost] = []
        self.report: Callable[[int, bytes], None] = lambda rank, body: None

    def on_report(self, kind: str, callback: Callable[[int, bytes], None]) -> None:
        assert kind == KIND
        self.report = callback

    def order(self, kind: str, body: bytes) -> None:
        assert kind == KIND
        self.told.append(order_of(body))

    def fail(self, error: RankLost) -> RankLost:
        self.failures.append(error)
        return error

    def say(self, rank: int, answer: Answer) -> None:
        self.report(rank, encode(answer))


def make(patience_s: float = 30.0) -> tuple[Team, OtherRanks]:
    team = Team()
    leader: Any = team
    return team, OtherRanks(leader, patience_s)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_worker_of_one_rank_waits_for_nobody() -> None:
    others = OtherRanks(None, 30.0)
    others.hold("t", 5)
    assert await others.fetch(FETCH, Tally()) == []
    await others.drop("t", complete=True)
    assert len(others) == 0


async def test_a_fetch_is_over_when_all_ranks_have_received() -> None:
    team, others = make()
    tally = Tally()
    fetch = asyncio.create_task(others.fetch(FETCH, tally))
    await settled()
    team.say(1, Fetched("t", num_bytes=10, seconds=0.5))
    team.say(1, Fetched("another", num_bytes=99))
    await settled()
    assert not fetch.done()
    team.say(2, Fetched("t", num_bytes=20, seconds=0.25))
    assert await fetch == []
    assert team.told == [FETCH]
    assert tally == Tally(30, 0.5, 0)
    assert len(others) == 0


@pytest.mark.parametrize(("stale", "kind"), [(False, HandoffError), (True, StaleLink)])
async def test_a_failure_is_told_to_all_and_reported_when_all_are_quiet(
    stale: bool, kind: type[HandoffError]
) -> None:
    team, others = make()
    tally = Tally()
    fetch = asyncio.create_task(others.fetch(FETCH, tally))
    await settled()
    team.say(2, Fetched("t", digests_refused=1, problem="no good", stale=stale))
    await settled()
    assert team.told == [FETCH, GiveUp("t")]
    assert not fetch.done()
    team.say(1, Fetched("t", num_bytes=7))
    with pytest.raises(HandoffError, match="rank 2: no good") as failure:
        await fetch
    assert type(failure.value) is kind
    assert tally == Tally(7, 0.0, 1)


async def test_a_cancelled_fetch_waits_until_all_are_quiet() -> None:
    team, others = make()
    fetch = asyncio.create_task(others.fetch(FETCH, Tally()))
    await settled()
    fetch.cancel()
    await settled()
    assert team.told == [FETCH, GiveUp("t")]
    assert not fetch.done()
    for rank in (1, 2):
        team.say(rank, Fetched("t", problem="the hand-off was cancelled"))
    with pytest.raises(asyncio.CancelledError):
        await fetch
    assert len(others) == 0


async def test_a_rank_that_never_becomes_quiet_is_lost_and_the_worker_with_it() -> None:
    team, others = make(PATIENCE_S)
    drop = asyncio.create_task(others.drop("t", complete=False))
    await settled()
    team.say(1, Dropped("t"))
    await drop
    assert team.told == [Drop("t", False)]
    assert [str(failure) for failure in team.failures] == [
        "hand-off t: a rank's links did not become quiet within 0.15 s"
    ]
    assert len(others) == 0


async def test_nobody_waits_for_ranks_that_are_lost() -> None:
    team, others = make()
    others.hold("t", 9)
    fetch = asyncio.create_task(others.fetch(FETCH, Tally()))
    await settled()
    others.lose(RankLost("rank 1 is lost"))
    with pytest.raises(RankLost, match="rank 1 is lost"):
        await fetch
    with pytest.raises(RankLost, match="rank 1 is lost"):
        await others.fetch(FETCH, Tally())
    await others.drop("t", complete=True)
    assert team.told[0] == Hold("t", 9)
    assert team.failures == []
