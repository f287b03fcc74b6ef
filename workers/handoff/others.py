"""The other ranks of a worker, as hand-offs at rank 0 see them.

They are told by orders and answer by reports; a worker of one rank has none, and waits for nobody.
"""

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

from twinflow.protos.errors import RankLost
from twinflow.workers.handoff.ending import to_the_end
from twinflow.workers.handoff.fetching import Tally
from twinflow.workers.handoff.incoming import IncomingTransfer
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
    answer_of,
    encode,
)
from twinflow.workers.ranks.leader import Leader

# A rank whose links do not become quiet within so many times the patience of its links is lost.
_QUIET = 3.0

_Expected: TypeAlias = "dict[int, asyncio.Future[Answer]]"


class OtherRanks:
    """Tells the other ranks about hand-offs; made on the event loop.

    Args:
        leader: rank 0 of several; None for a worker of one rank.
        patience_s: longest wait of a link for its peer.
    """

    def __init__(self, leader: Leader | None, patience_s: float) -> None:
        self._leader = leader
        self._patience_s = patience_s
        self._events = asyncio.get_running_loop()
        self._expected: dict[tuple[str, type[Answer]], _Expected] = {}
        self._lost: RankLost | None = None
        if leader is not None:
            leader.on_report(KIND, self._hear)

    def __len__(self) -> int:
        return len(self._expected)

    def hold(self, transfer_id: str, num_tokens: int) -> None:
        """Steps are going to compute a prompt whose KV is handed over."""
        self._tell(Hold(transfer_id, num_tokens))

    async def drop(self, transfer_id: str, *, complete: bool) -> None:
        """Returns when no other rank reads the blocks of a prompt any more.

        Args:
            transfer_id: whose.
            complete: every rank of the receiver has what it needs.
        """
        expected = self._expect(transfer_id, Dropped)
        self._tell(Drop(transfer_id, complete))
        await to_the_end(self._all(transfer_id, Dropped, list(expected.values())))

    async def fetch(self, order: Fetch, tally: Tally) -> list[IncomingTransfer]:
        """Returns when every other rank has received its share.

        Args:
            order: what.
            tally: filled in.

        Returns:
            No transfers: they are the other ranks' own.

        Raises:
            StaleLink: an idle link was dead.
            HandoffError: a rank could not receive. Either way nothing writes any more on any rank.
            RankLost: the worker has come to its end.
        """
        expected = self._expect(order.transfer_id, Fetched)
        pending = set(expected.values())
        ranks = {answer: rank for rank, answer in expected.items()}
        self._tell(order)
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for answer in done:
                    _fetched(answer).check(ranks[answer])
        except BaseException:  # whatever ended it, the links of all ranks must be quiet
            self._tell(GiveUp(order.transfer_id))
            raise
        finally:
            await to_the_end(self._all(order.transfer_id, Fetched, list(ranks)))
            for answer in ranks:
                if answer.exception() is None:
                    tally.add(_fetched(answer))
        return []

    def lose(self, error: RankLost) -> None:
        """A rank is lost, and the worker with it; called on any thread."""
        self._events.call_soon_threadsafe(self._give_up, error)

    def _give_up(self, error: RankLost) -> None:
        self._lost = error
        for expected in self._expected.values():
            for answer in expected.values():
                if not answer.done():
                    answer.set_exception(error)

    def _tell(self, order: Order) -> None:
        if self._leader is not None:
            self._leader.order(KIND, encode(order))

    def _expect(self, transfer_id: str, kind: type[Answer]) -> _Expected:
        """What each other rank will answer."""
        size = 1 if self._leader is None else self._leader.size
        expected: _Expected = {rank: self._events.create_future() for rank in range(1, size)}
        self._expected[transfer_id, kind] = expected
        if self._lost is not None:
            self._give_up(self._lost)
        return expected

    async def _all(
        self, transfer_id: str, kind: type[Answer], answers: "Sequence[asyncio.Future[Answer]]"
    ) -> None:
        """Wait for all answers, however they turn out; a rank that gives none is lost."""
        limit_s = _QUIET * self._patience_s
        if answers:
            await asyncio.wait(answers, timeout=limit_s)
        del self._expected[transfer_id, kind]
        silent = [answer for answer in answers if not answer.done()]
        for answer in answers:
            if answer in silent:
                answer.set_exception(RankLost("its answer did not come"))
            answer.exception()  # looked at: whoever waits hears of it
        if silent and self._leader is not None:
            reason = f"a rank's links did not become quiet within {limit_s:g} s"
            self._leader.fail(RankLost(f"hand-off {transfer_id}: {reason}"))

    def _hear(self, rank: int, body: bytes) -> None:
        """A report; called on the thread that listens to the rank."""
        self._events.call_soon_threadsafe(self._take, rank, answer_of(body))

    def _take(self, rank: int, answer: Answer) -> None:
        expected = self._expected.get((answer.transfer_id, type(answer)), {}).get(rank)
        if expected is not None and not expected.done():
            expected.set_result(answer)


def _fetched(answer: "asyncio.Future[Answer]") -> Fetched:
    found = answer.result()
    if not isinstance(found, Fetched):
        raise TypeError(f"a rank answered {type(found).__name__}")
    return found
