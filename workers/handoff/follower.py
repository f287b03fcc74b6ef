"""Hand-offs on a rank that is not rank 0: obeys its worker, talks to the ranks of other workers."""

import asyncio
from collections.abc import Callable
from functools import partial

from twinflow.protos.errors import StaleLink
from twinflow.runtime.kv_progress import KVProgress
from twinflow.workers.handoff.end import HandoffEnd
from twinflow.workers.handoff.fetching import RankReceiver, Tally
from twinflow.workers.handoff.incoming import IncomingTransfer
from twinflow.workers.handoff.orders import (
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
from twinflow.workers.handoff.sender import KVSender


class FollowerHandoffs:
    """The hand-offs of one rank; made on the event loop.

    Args:
        end: this rank.
        report: says something to rank 0.

    Attributes:
        sender: serves the ranks of other workers.
    """

    def __init__(self, end: HandoffEnd, report: Callable[[bytes], None]) -> None:
        self._report = report
        self._events = asyncio.get_running_loop()
        self._receiver = RankReceiver(end)
        self._fetches: dict[str, asyncio.Task[list[IncomingTransfer]]] = {}
        self._drops: set[asyncio.Task[None]] = set()
        self._closed = False
        self.sender = KVSender(end)

    def __len__(self) -> int:
        return len(self._fetches) + len(self._receiver) + len(self.sender)

    def on_kv(self, progress: KVProgress) -> None:
        """A step has finished layers of a held prompt; called on its thread."""
        self.sender.on_kv(progress)

    def hear(self, body: bytes) -> None:
        """Obey rank 0; called on the thread that listens to it.

        What concerns the steps that follow is done when this returns.
        """
        order = order_of(body)
        if isinstance(order, Hold):
            self.sender.hold(order.transfer_id, order.num_tokens)
        else:
            self._events.call_soon_threadsafe(self._obey, order)

    async def close(self) -> None:
        """End every hand-off; returns when all links are quiet."""
        self._closed = True
        for fetch in self._fetches.values():
            fetch.cancel()
        await asyncio.gather(*self._fetches.values(), return_exceptions=True)
        await asyncio.gather(*self._drops, return_exceptions=True)
        await self._receiver.close()

    def _obey(self, order: Order) -> None:
        match order:
            case Fetch() if not self._closed:
                self._start(order)
            case GiveUp() if order.transfer_id in self._fetches:
                self._fetches[order.transfer_id].cancel()
            case Drop():
                drop = asyncio.create_task(self._drop(order))
                self._drops.add(drop)
                drop.add_done_callback(self._drops.discard)

    def _start(self, order: Fetch) -> None:
        tally = Tally()
        fetch = asyncio.create_task(self._receiver.fetch(order, tally))
        self._fetches[order.transfer_id] = fetch
        fetch.add_done_callback(partial(self._fetched, order.transfer_id, tally))

    def _fetched(
        self, transfer_id: str, tally: Tally, fetch: "asyncio.Task[list[IncomingTransfer]]"
    ) -> None:
        """Tell how a fetch ended, also one that was cancelled before it began."""
        del self._fetches[transfer_id]
        problem, stale = "", False
        if fetch.cancelled():
            problem = "the hand-off was cancelled"
        elif error := fetch.exception():
            problem, stale = str(error) or type(error).__name__, isinstance(error, StaleLink)
        else:
            self._receiver.part(fetch.result())
        self._answer(
            Fetched(
                transfer_id,
                num_bytes=tally.num_bytes,
                seconds=tally.seconds,
                digests_refused=tally.digests_refused,
                problem=problem,
                stale=stale,
            )
        )

    async def _drop(self, order: Drop) -> None:
        await self.sender.drop(order.transfer_id, complete=order.complete)
        self._answer(Dropped(order.transfer_id))

    def _answer(self, answer: Answer) -> None:
        self._report(encode(answer))
