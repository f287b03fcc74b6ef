"""What one rank of a decode worker gets from one rank of a prefill worker in a hand-off.

    event loop       the conversation with the other rank
    transfer thread  the link: posts receives, waits, checks digests

Whichever fails first ends the other. Nobody goes on before the link is closed, and nobody waits
for a thread whose link is closed: it can only find that out.
"""

import asyncio
import queue
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import grpc
import torch

from twinflow.parallel.links.manifest import TransferManifest, Unit, UnitAnnouncement
from twinflow.parallel.links.transfer import UnitReceiver
from twinflow.protos.errors import HandoffError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.workers.fault_points import Point
from twinflow.workers.handoff.end import HandoffEnd
from twinflow.workers.handoff.ending import look_away, to_the_end
from twinflow.workers.handoff.first_token import FirstToken
from twinflow.workers.handoff.links import PeerLease
from twinflow.workers.handoff.orders import Fetch
from twinflow.workers.rpc import error_of_call

_Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.TransferRequest, pb.TransferResponse]"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class IncomingRoute:
    """One of the routes of a hand-off.

    Attributes:
        order: the hand-off.
        sender: the rank that sends; `ranks` is empty.
        parts: what it sends.
        lease: the link; the transfer gives it back.
    """

    order: Fetch
    sender: pb.Peer
    parts: tuple[str, ...]
    lease: PeerLease


class IncomingTransfer:
    """Fetches the KV of one request over one link.

    Args:
        end: this rank; the blocks of the order belong to the link until `run` has ended.
        route: what to fetch.
        first: brought by this conversation; None if another one does.

    Attributes:
        manifest: what is received.
        seconds: from the first announcement to the last digest.

    Raises:
        HandoffError: the order makes no transfer.
    """

    def __init__(
        self, end: HandoffEnd, route: IncomingRoute, first: FirstToken | None = None
    ) -> None:
        self._end = end
        self._first = first
        self._lease = route.lease
        blocks = end.share.blocks(route.order.first_block, route.order.num_blocks)
        self.manifest = TransferManifest(
            transfer_id=route.order.transfer_id,
            layout=end.cache.layout.only(route.parts),
            first_block=blocks.start,
            num_blocks=len(blocks),
            layers_per_unit=end.layers_per_unit,
            block_step=blocks.step,
        )
        self._table = route.order.blocks()
        self._part_index = [end.cache.layout.index_of(name) for name in route.parts]
        self._opening = _opening(end, route, self.manifest, first)
        self._call: _Call = end.links.stub(route.sender).Transfer(
            metadata=end.links.metadata, timeout=route.order.deadline_ms / 1000
        )
        self._events = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[UnitAnnouncement | None] = queue.SimpleQueue()
        self._began: float | None = None
        self._prefilled = False
        self._arrived = False
        self._receiver: UnitReceiver | None = None
        self.seconds = 0.0

    @property
    def num_bytes(self) -> int:
        """Bytes that have arrived and were right: all or none."""
        return self.manifest.num_bytes if self._arrived else 0

    @property
    def digests_refused(self) -> int:
        """Pages that arrived with a wrong digest."""
        return 0 if self._receiver is None else self._receiver.digests_refused

    async def run(self) -> None:
        """Returns when every block is here and right, and the first token, if it is brought.

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
        except BaseException as error:  # whatever ended it, the link must be quiet
            # The sender notices that the link was closed here, and its complaint may come first.
            own = None if self._receiver is None else self._receiver.failure
            await to_the_end(self._give_up(listen, work))
            if own is None or not isinstance(error, HandoffError):
                raise
            raise own from None
        now = self._events.time()
        self.seconds = now - (self._began or now)
        self._arrived = True

    async def abandon(self) -> None:
        """After `run`, instead of `part`: the hand-off failed elsewhere."""
        self._call.cancel()
        await self._lease.discard()

    async def _give_up(self, listen: "asyncio.Task[None]", work: "asyncio.Future[None]") -> None:
        """Close the link, which makes the blocks quiet; afterwards the engine is told nothing."""
        look_away(listen)
        look_away(work)
        listen.cancel()
        self._inbox.put(None)
        await self.abandon()
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
        """Take the sender's messages until it has announced every cell, and the first token."""
        await self._patiently(self._call.write(pb.TransferRequest(open=self._opening)))
        announced = 0
        while announced < self.manifest.num_messages or (self._first and not self._first.known):
            response = await self._patiently(self._call.read())
            if not isinstance(response, pb.TransferResponse):
                raise HandoffError(f"{self._lease.peer} ended the hand-off early")
            match response.WhichOneof("message"):
                case "ready":
                    self._began = self._began or self._events.time()
                    announced += response.ready.num_blocks
                    self._inbox.put(self._announcement(response.ready))
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
        if self._first is None or self._prefilled or len(output.token_ids) != 1:
            raise HandoffError(f"{self._lease.peer} did not send exactly one first token")
        self._prefilled = True
        if not self._first.known:
            self._first.take(output)

    def _announcement(self, ready: pb.UnitReady) -> UnitAnnouncement:
        unit = Unit(
            index=ready.unit,
            first_block=ready.first_block,
            num_blocks=ready.num_blocks,
            first_layer=ready.first_layer,
            num_layers=ready.num_layers,
            part=ready.part,
            block_step=self.manifest.block_step,
        )
        return UnitAnnouncement(unit, ready.bytes_per_block, tuple(ready.digests))

    def _work_link(self) -> None:
        """The transfer thread: post what is announced, finish in the same order.

        Raises:
            HandoffError: the transfer failed; the link is closed.
        """
        receiver = UnitReceiver(self._lease.connect(), self.manifest, self._page)
        self._receiver = receiver
        under_way: deque[int] = deque()
        while not receiver.complete:
            self._post_announced(receiver, under_way)
            receiver.finish(under_way.popleft(), self._end.patience_s)

    def _post_announced(self, receiver: UnitReceiver, under_way: deque[int]) -> None:
        """Post every unit that is announced; wait for one if none is under way."""
        while not under_way or not self._inbox.empty():
            announcement = self._inbox.get()
            if announcement is None:
                raise HandoffError("the hand-off was given up")
            receiver.post(announcement)
            self._tell_posted(announcement.unit.index)
            self._end.faults.reach(Point.HAND_OFF)
            under_way.append(announcement.unit.index)

    def _tell_posted(self, index: int) -> None:
        posted = pb.TransferRequest(posted=pb.UnitPosted(unit=index))
        told = self._patiently(self._call.write(posted))
        asyncio.run_coroutine_threadsafe(told, self._events).result(2 * self._end.patience_s)

    def _page(self, block: int, first_layer: int, num_layers: int, part: int) -> torch.Tensor:
        entry = self._table[block // self.manifest.block_step]
        return self._end.cache.page(entry, first_layer, num_layers, self._part_index[part])


def _opening(
    end: HandoffEnd, route: IncomingRoute, manifest: TransferManifest, first: FirstToken | None
) -> pb.TransferOpen:
    prompt = None
    if first is not None:
        prompt = pb.Submission()
        prompt.CopyFrom(first.submission)
        prompt.ClearField("prefill")
    return pb.TransferOpen(
        transfer_id=manifest.transfer_id,
        submission=prompt,
        receiver_id=end.links.me.worker_id,
        receiver_epoch=end.links.me.epoch,
        sender_epoch=route.sender.epoch,
        model_fingerprint=end.fingerprint,
        kv_layout=manifest.layout.digest(),
        first_block=manifest.first_block,
        num_blocks=manifest.num_blocks,
        layers_per_unit=manifest.layers_per_unit,
        link_id=route.lease.link_id,
        new_link=not route.lease.reused,
        parts=route.parts,
        block_step=manifest.block_step,
        draft=end.draft,
    )
