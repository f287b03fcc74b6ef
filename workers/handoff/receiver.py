"""The decode worker's half of a hand-off.

Started by the engine's order, when blocks are reserved. Ends in exactly one report to the engine:
every block right and the first token known, or not. Until then the blocks belong to the link, and
the report comes only when the link is quiet.

    event loop      the conversation with the prefill worker
    transfer thread the link: posts receives, waits, checks digests
"""

import asyncio
import queue
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import grpc
import structlog
import torch

from twinflow.parallel.links.manifest import TransferManifest, Unit, UnitAnnouncement
from twinflow.parallel.links.pool import LinkLease
from twinflow.parallel.links.transfer import UnitReceiver
from twinflow.protos.errors import HandoffError, TwinflowError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.build import BuiltEngine
from twinflow.runtime.lifecycle import ReceiveOrder
from twinflow.runtime.outputs import SampledToken
from twinflow.workers.convert import logprobs_from_pb, phases_from_pb
from twinflow.workers.core import WorkerCore
from twinflow.workers.handoff.links import PeerLinks

_Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.TransferRequest, pb.TransferResponse]"


@dataclass(slots=True)
class _Received:
    """What has come of one hand-off so far."""

    prefilled: bool = False
    began: float = 0.0


class KVReceiver:
    """Fetches KV that other workers compute.

    Args:
        core: of this worker; hears how every hand-off ends.
        built: the engine's KV memory.
        links: to the peers.
        me: this worker.
    """

    def __init__(
        self, core: WorkerCore, built: BuiltEngine, links: PeerLinks, me: pb.DescribeResponse
    ) -> None:
        self._core = core
        self._built = built
        self._links = links
        self._me = me
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, order: ReceiveOrder) -> None:
        """See `KVFetcher.start`."""
        engine_id = order.request.request_id
        task = asyncio.create_task(self._fetch(order), name=f"fetch-{engine_id}")
        self._tasks[engine_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(engine_id, None))

    def cancel(self, engine_id: str) -> None:
        """See `KVFetcher.cancel`."""
        task = self._tasks.get(engine_id)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Cancel every hand-off and wait until their links are quiet."""
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _fetch(self, order: ReceiveOrder) -> None:
        """One hand-off, and the report of how it ended."""
        engine_id = order.request.request_id
        error: TwinflowError = HandoffError("the hand-off was cancelled")
        try:
            await self._transfer(order)
        except TwinflowError as problem:
            error = problem
        except grpc.aio.AioRpcError as problem:
            error = HandoffError(f"{problem.code().name.lower()}: {problem.details()}")
        except Exception as problem:  # noqa: BLE001 - whatever it was, the engine must hear of it
            error = HandoffError(f"{type(problem).__name__}: {problem}")
        except asyncio.CancelledError:
            self._core.loop.post(lambda engine: engine.receive_failed(engine_id, error))
            raise
        else:
            self._core.state.handoffs.completed += 1
            self._core.loop.post(lambda engine: engine.receive_done(engine_id))
            return
        self._core.state.handoffs.failed += 1
        structlog.get_logger().warning(
            "hand-off failed; the prompt is computed here", request=engine_id, problem=str(error)
        )
        self._core.loop.post(lambda engine: engine.receive_failed(engine_id, error))

    async def _transfer(self, order: ReceiveOrder) -> None:
        """Returns when every block is right and the first token is with the engine.

        Raises:
            TwinflowError: the hand-off failed; the link is closed and nothing writes any more.
        """
        submission = order.request.fetch_from
        if not isinstance(submission, pb.Submission):
            raise HandoffError("the request does not say where its KV comes from")
        lease = self._links.lease_receiving(submission.prefill)
        try:
            exchange = _Exchange(self._core, self._built, lease, order)
            await exchange.run(self._links, submission, self._me)
        except BaseException:  # whatever ends it, the link must be quiet
            await _in_thread(lease.discard)
            raise
        await _in_thread(lease.release)


class _Exchange:
    """The conversation of one hand-off and the thread that works its link."""

    def __init__(
        self, core: WorkerCore, built: BuiltEngine, lease: LinkLease, order: ReceiveOrder
    ) -> None:
        self._core = core
        self._lease = lease
        self._order = order
        self._built = built
        self._manifest = TransferManifest(
            transfer_id=uuid.uuid4().hex,
            layout=built.layout,
            first_block=order.first_block,
            num_blocks=len(order.blocks) - order.first_block,
            layers_per_unit=built.layers_per_unit,
        )
        self._inbox: queue.SimpleQueue[UnitAnnouncement | None] = queue.SimpleQueue()
        self._received = _Received()

    async def run(
        self, links: PeerLinks, submission: pb.Submission, me: pb.DescribeResponse
    ) -> None:
        """Fetch; see `KVReceiver._transfer`."""
        events = asyncio.get_running_loop()
        call = links.stub(submission.prefill.address).Transfer(
            metadata=links.metadata, timeout=submission.deadline_ms / 1000
        )
        posted: asyncio.Queue[int] = asyncio.Queue()
        work = events.run_in_executor(
            links.threads,
            self._work_link,
            lambda index: events.call_soon_threadsafe(posted.put_nowait, index),
        )
        tell = asyncio.create_task(_tell_posted(call, posted))
        try:
            await call.write(pb.TransferRequest(open=self._opening(submission, me)))
            listen = asyncio.create_task(self._listen(call))
            await _all_or_first_error(listen, asyncio.ensure_future(work), tell)
            await call.write(pb.TransferRequest(done=pb.TransferDone()))
            await call.done_writing()
            await asyncio.wait_for(call.read(), self._core.config.kv_transfer_timeout_s)
        finally:
            tell.cancel()
            self._inbox.put(None)
            call.cancel()
            if not work.done():
                # Closing the link wakes the thread.
                await _in_thread(self._lease.discard)
            await asyncio.gather(tell, work, return_exceptions=True)

    def _opening(self, submission: pb.Submission, me: pb.DescribeResponse) -> pb.TransferOpen:
        prompt = pb.Submission()
        prompt.CopyFrom(submission)
        prompt.ClearField("prefill")
        return pb.TransferOpen(
            transfer_id=self._manifest.transfer_id,
            submission=prompt,
            receiver_id=me.worker_id,
            receiver_epoch=me.epoch,
            sender_epoch=submission.prefill.epoch,
            model_fingerprint=me.model_fingerprint,
            kv_layout=me.kv_layout,
            first_block=self._manifest.first_block,
            num_blocks=self._manifest.num_blocks,
            layers_per_unit=self._manifest.layers_per_unit,
            link_id=self._lease.link_id,
            new_link=not self._lease.reused,
        )

    async def _listen(self, call: _Call) -> None:
        """Take the sender's messages until it has announced every cell and the first token."""
        announced = 0
        while announced < self._manifest.num_messages or not self._received.prefilled:
            response = await call.read()
            if not isinstance(response, pb.TransferResponse):
                raise HandoffError(f"{self._lease.peer} ended the hand-off early")
            if response.WhichOneof("message") == "prefilled":
                self._take_first_token(response.prefilled)
            else:
                self._received.began = self._received.began or time.monotonic()
                announced += response.ready.num_blocks
                self._inbox.put(_announcement(response.ready))

    def _take_first_token(self, output: pb.RequestOutput) -> None:
        if output.HasField("failure"):
            raise HandoffError(f"{self._lease.peer}: {output.failure.message}")
        if self._received.prefilled or len(output.token_ids) != 1:
            raise HandoffError(f"{self._lease.peer} sent {len(output.token_ids)} first tokens")
        self._received.prefilled = True
        logprobs = logprobs_from_pb(output.logprobs)
        sampled = SampledToken(output.token_ids[0], logprobs[0] if logprobs else None)
        phases, cached = phases_from_pb(output.phases), output.cached_tokens
        engine_id = self._order.request.request_id
        self._core.loop.post(
            lambda engine: engine.receive_first_token(engine_id, sampled, phases, cached)
        )

    def _work_link(self, on_posted: Callable[[int], object]) -> None:
        """The transfer thread: post what is announced, finish in the same order.

        Raises:
            HandoffError: the transfer failed; the link is closed.
        """
        receiver = UnitReceiver(self._lease.connect(), self._manifest, self._page)
        handoffs = self._core.state.handoffs
        under_way: list[int] = []
        try:
            while not receiver.complete:
                under_way += self._post_announced(receiver, on_posted, wait=not under_way)
                receiver.finish(under_way.pop(0), self._core.config.kv_transfer_timeout_s)
        finally:
            handoffs.digests_refused += receiver.digests_refused
        handoffs.bytes += self._manifest.num_bytes
        handoffs.seconds += time.monotonic() - self._received.began

    def _post_announced(
        self, receiver: UnitReceiver, on_posted: Callable[[int], object], *, wait: bool
    ) -> list[int]:
        """Post every unit that is announced; with `wait`, at least one."""
        posted: list[int] = []
        while (wait and not posted) or not self._inbox.empty():
            announcement = self._inbox.get()
            if announcement is None:
                raise HandoffError("the hand-off was given up")
            receiver.post(announcement)
            on_posted(announcement.unit.index)
            posted.append(announcement.unit.index)
        return posted

    def _page(self, block: int, first_layer: int, num_layers: int) -> torch.Tensor:
        return self._built.cache.page(self._order.blocks[block], first_layer, num_layers)


def _announcement(ready: pb.UnitReady) -> UnitAnnouncement:
    unit = Unit(
        index=ready.unit,
        first_block=ready.first_block,
        num_blocks=ready.num_blocks,
        first_layer=ready.first_layer,
        num_layers=ready.num_layers,
    )
    return UnitAnnouncement(unit, ready.bytes_per_block, tuple(ready.digests))


async def _tell_posted(call: _Call, posted: "asyncio.Queue[int]") -> None:
    """Tell the sender about posted receives, until cancelled."""
    while True:
        unit = await posted.get()
        await call.write(pb.TransferRequest(posted=pb.UnitPosted(unit=unit)))


async def _all_or_first_error(
    listen: "asyncio.Task[None]", work: "asyncio.Future[None]", tell: "asyncio.Task[None]"
) -> None:
    """Wait for both halves; an error of any part ends the wait, and the listener."""
    try:
        pending: set[asyncio.Future[None]] = {listen, work}
        while pending:
            done, pending = await asyncio.wait(
                {*pending, tell}, return_when=asyncio.FIRST_COMPLETED
            )
            pending.discard(tell)
            for future in done:
                future.result()
    finally:
        listen.cancel()
        await asyncio.gather(listen, return_exceptions=True)


async def _in_thread(close: Callable[[], None]) -> None:
    """Run something short that blocks, to its end even if the caller is cancelled."""
    await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, close))
