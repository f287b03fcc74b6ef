"""One hand-off at the decode worker.

    event loop       the conversation with the prefill worker
    transfer thread  the link: posts receives, waits, checks digests

Whichever fails first ends the other. Nobody goes on before the link is closed, and nobody waits
for a thread whose link is closed: it can only find that out.
"""

import asyncio
import queue
import uuid
from collections import deque
from collections.abc import Awaitable
from typing import TypeAlias, TypeVar

import grpc
import torch

from twinflow.parallel.links.manifest import TransferManifest, Unit, UnitAnnouncement
from twinflow.parallel.links.transfer import UnitReceiver
from twinflow.protos.errors import HandoffError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.lifecycle import ReceiveOrder
from twinflow.runtime.outputs import SampledToken
from twinflow.workers.convert import logprobs_from_pb, phases_from_pb
from twinflow.workers.handoff.end import HandoffEnd
from twinflow.workers.handoff.ending import look_away, to_the_end
from twinflow.workers.handoff.links import PeerLease
from twinflow.workers.rpc import error_of_call

_Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.TransferRequest, pb.TransferResponse]"
T = TypeVar("T")


class IncomingTransfer:
    """Fetches the KV of one request over one link.

    Args:
        end: this worker.
        order: of the engine; its blocks belong to the link until `run` has ended.
        submission: the request, as the gateway sent it; says where its KV is.
        lease: the link; the transfer gives it back.
        engine_has_token: an earlier transfer brought the first token, which is always the same.

    Attributes:
        manifest: what is received.
        engine_has_token: whether the engine knows the first token.
        digests_refused: pages that arrived with a wrong digest.
        seconds: from the first announcement to the last digest.
    """

    def __init__(
        self,
        end: HandoffEnd,
        order: ReceiveOrder,
        submission: pb.Submission,
        lease: PeerLease,
        *,
        engine_has_token: bool = False,
    ) -> None:
        self._end = end
        self._order = order
        self._lease = lease
        self.manifest = TransferManifest(
            transfer_id=uuid.uuid4().hex,
            layout=end.built.layout,
            first_block=order.first_block,
            num_blocks=len(order.blocks) - order.first_block,
            layers_per_unit=end.built.layers_per_unit,
        )
        self._opening = _opening(end.me, lease, self.manifest, submission)
        self._call: _Call = end.links.stub(submission.prefill).Transfer(
            metadata=end.links.metadata, timeout=submission.deadline_ms / 1000
        )
        self._events = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[UnitAnnouncement | None] = queue.SimpleQueue()
        self._began: float | None = None
        self._prefilled = False
        self.engine_has_token = engine_has_token
        self.digests_refused = 0
        self.seconds = 0.0

    async def run(self) -> None:
        """Returns when every block is here and right, and the engine has the first token.

        Raises:
            TwinflowError: the hand-off failed; the link is closed and nothing writes any more.
        """
        listen = asyncio.create_task(self._listen())
        work = self._events.run_in_executor(self._end.links.threads, self._work_link)
        try:
            await asyncio.wait((listen, work), return_when=asyncio.FIRST_EXCEPTION)
            for half in (listen, work):
                if half.done():
                    half.result()
        except BaseException:  # whatever ended it, the link must be quiet
            await to_the_end(self._give_up(listen, work))
            raise
        now = self._events.time()
        self.seconds = now - (self._began or now)

    async def _give_up(self, listen: "asyncio.Task[None]", work: "asyncio.Future[None]") -> None:
        """Close the link, which makes the blocks quiet; afterwards the engine is told nothing."""
        look_away(listen)
        look_away(work)
        listen.cancel()
        self._call.cancel()
        self._inbox.put(None)
        await self._lease.discard()
        await asyncio.wait({listen})

    async def part(self) -> None:
        """After `run`: let the sender free its blocks; keep the link if it has no objection."""
        agreed = False
        try:
            async with asyncio.timeout(self._end.patience_s):
                await self._call.write(pb.TransferRequest(done=pb.TransferDone()))
                await self._call.done_writing()
                while await self._call.read() is not grpc.aio.EOF:
                    pass
            agreed = True
        except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            self._call.cancel()
        finally:
            await to_the_end(self._lease.release() if agreed else self._lease.discard())

    async def _listen(self) -> None:
        """Take the sender's messages until it has announced every cell and the first token."""
        await self._patiently(self._call.write(pb.TransferRequest(open=self._opening)))
        announced = 0
        while announced < self.manifest.num_messages or not self.engine_has_token:
            response = await self._patiently(self._call.read())
            if not isinstance(response, pb.TransferResponse):
                raise HandoffError(f"{self._lease.peer} ended the hand-off early")
            match response.WhichOneof("message"):
                case "ready":
                    self._began = self._began or self._events.time()
                    announced += response.ready.num_blocks
                    self._inbox.put(_announcement(response.ready))
                case "prefilled":
                    self._take_first_token(response.prefilled)

    async def _patiently(self, step: Awaitable[T]) -> T:
        """A step of the conversation, which takes no longer than the sender may be silent."""
        peer, patience_s = self._lease.peer, self._end.patience_s
        try:
            async with asyncio.timeout(patience_s):
                return await step
        except TimeoutError:
            raise HandoffError(f"{peer} gave no sign of life for {patience_s:g} s") from None
        except grpc.aio.AioRpcError as problem:
            raise error_of_call(problem) from problem
        except (asyncio.CancelledError, asyncio.InvalidStateError):
            # The call was cancelled, here or by the end of its channel.
            raise HandoffError(f"the call to {peer} was given up") from None

    def _take_first_token(self, output: pb.RequestOutput) -> None:
        if output.HasField("failure"):
            raise HandoffError(f"{self._lease.peer}: {output.failure.message}")
        if self._prefilled or len(output.token_ids) != 1:
            raise HandoffError(f"{self._lease.peer} did not send exactly one first token")
        self._prefilled = True
        if self.engine_has_token:
            return
        self.engine_has_token = True
        logprobs = logprobs_from_pb(output.logprobs)
        sampled = SampledToken(output.token_ids[0], logprobs[0] if logprobs else None)
        phases, cached = phases_from_pb(output.phases), output.cached_tokens
        engine_id = self._order.request.request_id
        self._end.core.loop.post(
            lambda engine: engine.receive_first_token(engine_id, sampled, phases, cached)
        )

    def _work_link(self) -> None:
        """The transfer thread: post what is announced, finish in the same order.

        Raises:
            HandoffError: the transfer failed; the link is closed.
        """
        receiver = UnitReceiver(self._lease.connect(), self.manifest, self._page)
        under_way: deque[int] = deque()
        try:
            while not receiver.complete:
                self._post_announced(receiver, under_way)
                receiver.finish(under_way.popleft(), self._end.patience_s)
        finally:
            self.digests_refused = receiver.digests_refused

    def _post_announced(self, receiver: UnitReceiver, under_way: deque[int]) -> None:
        """Post every unit that is announced; wait for one if none is under way."""
        while not under_way or not self._inbox.empty():
            announcement = self._inbox.get()
            if announcement is None:
                raise HandoffError("the hand-off was given up")
            receiver.post(announcement)
            self._tell_posted(announcement.unit.index)
            under_way.append(announcement.unit.index)

    def _tell_posted(self, index: int) -> None:
        posted = pb.TransferRequest(posted=pb.UnitPosted(unit=index))
        told = self._patiently(self._call.write(posted))
        asyncio.run_coroutine_threadsafe(told, self._events).result(2 * self._end.patience_s)

    def _page(self, block: int, first_layer: int, num_layers: int, part: int) -> torch.Tensor:
        return self._end.built.cache.page(self._order.blocks[block], first_layer, num_layers, part)


def _opening(
    me: pb.DescribeResponse, lease: PeerLease, manifest: TransferManifest, submission: pb.Submission
) -> pb.TransferOpen:
    prompt = pb.Submission()
    prompt.CopyFrom(submission)
    prompt.ClearField("prefill")
    return pb.TransferOpen(
        transfer_id=manifest.transfer_id,
        submission=prompt,
        receiver_id=me.worker_id,
        receiver_epoch=me.epoch,
        sender_epoch=submission.prefill.epoch,
        model_fingerprint=me.model_fingerprint,
        kv_layout=me.kv_layout,
        first_block=manifest.first_block,
        num_blocks=manifest.num_blocks,
        layers_per_unit=manifest.layers_per_unit,
        link_id=lease.link_id,
        new_link=not lease.reused,
    )


def _announcement(ready: pb.UnitReady) -> UnitAnnouncement:
    unit = Unit(
        index=ready.unit,
        first_block=ready.first_block,
        num_blocks=ready.num_blocks,
        first_layer=ready.first_layer,
        num_layers=ready.num_layers,
        part=ready.part,
    )
    return UnitAnnouncement(unit, ready.bytes_per_block, tuple(ready.digests))
