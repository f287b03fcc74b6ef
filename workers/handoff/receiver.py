"""The decode worker's hand-offs.

Each is started by the engine's order, when blocks are reserved, and ends in exactly one report to
the engine: every block right and the first token known, or not. Until then the blocks belong to
the link, and the report comes only when the link is quiet.
"""

import asyncio
import uuid
from array import array
from functools import partial

import structlog

from twinflow.protos.errors import HandoffError, StaleLink, TwinflowError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.engine import Engine
from twinflow.runtime.lifecycle import ReceiveOrder
from twinflow.workers.core import WorkerCore
from twinflow.workers.handoff.drafts import DraftReceiver
from twinflow.workers.handoff.end import HandoffEnd
from twinflow.workers.handoff.ending import all_or_none
from twinflow.workers.handoff.fetching import RankReceiver, Tally
from twinflow.workers.handoff.first_token import FirstToken
from twinflow.workers.handoff.orders import Fetch
from twinflow.workers.handoff.others import OtherRanks


class KVReceiver:
    """Fetches KV that other workers compute, to all ranks of this one.

    Args:
        end: rank 0.
        core: its engine, which hears how every hand-off ends.
        others: the other ranks.
        drafts: fetches KV for the model that drafts; None if there is none to be handed over.

    Attributes:
        drafts: likewise.
    """

    def __init__(
        self,
        end: HandoffEnd,
        core: WorkerCore,
        others: OtherRanks,
        drafts: DraftReceiver | None = None,
    ) -> None:
        self._end = end
        self._core = core
        self._others = others
        self._own = RankReceiver(end)
        self._counters = core.state.handoffs
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self.drafts = drafts

    def __len__(self) -> int:
        own = len(self._fetches) + len(self._own)
        return own if self.drafts is None else own + len(self.drafts)

    def start(self, order: ReceiveOrder) -> None:
        """See `KVFetcher.start`."""
        engine_id = order.request.request_id
        fetch = asyncio.create_task(self._fetch(order), name=f"fetch-{engine_id}")
        self._fetches[engine_id] = fetch
        fetch.add_done_callback(partial(self._report, order))

    def cancel(self, engine_id: str) -> None:
        """See `KVFetcher.cancel`."""
        fetch = self._fetches.get(engine_id)
        if fetch is not None:
            fetch.cancel()
        if self.drafts is not None:
            self.drafts.cancel(engine_id)

    async def close(self) -> None:
        """Cancel every hand-off and wait until their links are quiet."""
        for fetch in self._fetches.values():
            fetch.cancel()
        await asyncio.gather(*self._fetches.values(), return_exceptions=True)
        await self._own.close()
        if self.drafts is not None:
            await self.drafts.close()

    async def _fetch(self, order: ReceiveOrder) -> None:
        """One hand-off; a link that was kept too long costs a second try, not the hand-off.

        Raises:
            TwinflowError: the hand-off failed, and nothing writes to the blocks any more.
        """
        submission = order.request.fetch_from
        if not isinstance(submission, pb.Submission):
            raise HandoffError("the request does not say where its KV comes from")
        first = FirstToken(self._core.loop, order.request.request_id, submission)
        try:
            await self._attempt(order, first, fresh=False)
        except StaleLink as error:
            structlog.get_logger().info("an idle link was dead", problem=str(error))
            await self._attempt(order, first, fresh=True)

    async def _attempt(self, order: ReceiveOrder, first: FirstToken, *, fresh: bool) -> None:
        """Fetch to all ranks and count what has come of it; partings are not awaited."""
        tally, fetch = Tally(), self._order(order, first.submission, fresh=fresh)
        try:
            transfers, _ = await all_or_none(
                [self._own.fetch(fetch, tally, first), self._others.fetch(fetch, tally)],
                self._own.abandon,
            )
        finally:
            self._counters.digests_refused += tally.digests_refused
        self._counters.completed += 1
        self._counters.bytes += tally.num_bytes
        self._counters.seconds += tally.seconds
        self._own.part(transfers)

    def _order(self, order: ReceiveOrder, submission: pb.Submission, *, fresh: bool) -> Fetch:
        """What every rank is to receive; an entry of the block table is a block on each."""
        num_tokens = len(submission.prompt_token_ids) + len(submission.output_token_ids)
        return Fetch(
            transfer_id=uuid.uuid4().hex,
            sender=submission.prefill.SerializeToString(),
            first_block=order.first_block * self._end.share.size,
            num_blocks=-(-num_tokens // self._end.cache.layout.block_size),
            table=array("i", order.blocks).tobytes(),
            deadline_ms=submission.deadline_ms,
            fresh=fresh,
        )

    def _report(self, order: ReceiveOrder, fetch: "asyncio.Task[None]") -> None:
        """Tell the engine how a hand-off ended, also one that was cancelled before it began."""
        engine_id = order.request.request_id
        del self._fetches[engine_id]
        if fetch.cancelled():
            error: TwinflowError = HandoffError("the hand-off was cancelled")
        elif problem := fetch.exception():
            self._counters.failed += 1
            error = _known(problem)
            structlog.get_logger().warning(
                "hand-off failed; the prompt is computed here",
                request=engine_id,
                problem=str(error),
                exc_info=None if error is problem else problem,
            )
        else:
            self._core.loop.post(partial(self._received, order))
            return
        self._core.loop.post(lambda engine: engine.receive_failed(engine_id, error))

    def _received(self, order: ReceiveOrder, engine: Engine) -> None:
        """Let the request decode; on the engine's thread."""
        if self.drafts is not None:
            self.drafts.settle(engine, order)
        engine.receive_done(order.request.request_id)


def _known(problem: BaseException) -> TwinflowError:
    if isinstance(problem, TwinflowError):
        return problem
    return HandoffError(f"{type(problem).__name__}: {problem}")
