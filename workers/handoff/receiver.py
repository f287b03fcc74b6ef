"""The decode worker's hand-offs.

Each is started by the engine's order, when blocks are reserved, and ends in exactly one report to
the engine: every block right and the first token known, or not. Until then the blocks belong to
the link, and the report comes only when the link is quiet.
"""

import asyncio
from functools import partial

import structlog

from twinflow.protos.errors import HandoffError, LinkError, TwinflowError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.lifecycle import ReceiveOrder
from twinflow.workers.handoff.end import HandoffEnd
from twinflow.workers.handoff.incoming import IncomingTransfer


class KVReceiver:
    """Fetches KV that other workers compute.

    Args:
        end: this worker; its engine hears how every hand-off ends.
    """

    def __init__(self, end: HandoffEnd) -> None:
        self._end = end
        self._counters = end.core.state.handoffs
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self._partings: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._fetches) + len(self._partings)

    def start(self, order: ReceiveOrder) -> None:
        """See `KVFetcher.start`."""
        engine_id = order.request.request_id
        fetch = asyncio.create_task(self._fetch(order), name=f"fetch-{engine_id}")
        self._fetches[engine_id] = fetch
        fetch.add_done_callback(partial(self._report, engine_id))

    def cancel(self, engine_id: str) -> None:
        """See `KVFetcher.cancel`."""
        fetch = self._fetches.get(engine_id)
        if fetch is not None:
            fetch.cancel()

    async def close(self) -> None:
        """Cancel every hand-off and wait until their links are quiet."""
        for fetch in self._fetches.values():
            fetch.cancel()
        await asyncio.gather(*self._fetches.values(), return_exceptions=True)
        await asyncio.gather(*self._partings, return_exceptions=True)

    async def _fetch(self, order: ReceiveOrder) -> None:
        """One hand-off; a link that was kept too long costs a second try, not the hand-off.

        Raises:
            TwinflowError: the hand-off failed, and nothing writes to the blocks any more.
        """
        submission = order.request.fetch_from
        if not isinstance(submission, pb.Submission):
            raise HandoffError("the request does not say where its KV comes from")
        lease = self._end.links.lease_receiving(submission.prefill)
        transfer = IncomingTransfer(self._end, order, submission, lease)
        try:
            await self._run(transfer)
        except LinkError as error:
            if not lease.reused:
                raise
            structlog.get_logger().info("an idle link was dead", problem=str(error))
            lease = self._end.links.lease_receiving(submission.prefill, fresh=True)
            known = transfer.engine_has_token
            transfer = IncomingTransfer(self._end, order, submission, lease, engine_has_token=known)
            await self._run(transfer)

    async def _run(self, transfer: IncomingTransfer) -> None:
        """Run a transfer and count what has come of it; parting from the sender is not awaited."""
        try:
            await transfer.run()
        finally:
            self._counters.digests_refused += transfer.digests_refused
        self._counters.completed += 1
        self._counters.bytes += transfer.manifest.num_bytes
        self._counters.seconds += transfer.seconds
        parting = asyncio.create_task(transfer.part())
        self._partings.add(parting)
        parting.add_done_callback(self._partings.discard)

    def _report(self, engine_id: str, fetch: "asyncio.Task[None]") -> None:
        """Tell the engine how a hand-off ended, also one that was cancelled before it began."""
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
            self._end.core.loop.post(lambda engine: engine.receive_done(engine_id))
            return
        self._end.core.loop.post(lambda engine: engine.receive_failed(engine_id, error))


def _known(problem: BaseException) -> TwinflowError:
    if isinstance(problem, TwinflowError):
        return problem
    return HandoffError(f"{type(problem).__name__}: {problem}")
