"""What one rank of a prefill worker sends to one rank of a decode worker in a hand-off.

    thread of steps  says which layers of which tokens are final (`on_kv`)
    event loop       the conversation with the other rank
    transfer thread  the link: digests and sends

The transfer thread takes events in the order in which they happened: a unit is final, a unit is
posted, the decode worker has everything.
"""

import asyncio
import queue
from dataclasses import dataclass

import structlog
import torch

from twinflow.parallel.links.manifest import TransferManifest, Unit, UnitAnnouncement
from twinflow.parallel.links.transfer import UnitSender
from twinflow.protos.errors import HandoffError, TwinflowError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.kv_progress import KVProgress
from twinflow.runtime.outputs import TokenDelta
from twinflow.workers.convert import failure_to_pb, output_to_pb
from twinflow.workers.fault_points import Point
from twinflow.workers.handoff.end import HandoffEnd
from twinflow.workers.handoff.held import HeldPrompt
from twinflow.workers.handoff.links import PeerLease
from twinflow.workers.handoff.units import UnitPlanner


@dataclass(frozen=True, slots=True)
class _Final:
    """A unit whose pages will not change any more."""

    unit: Unit


@dataclass(frozen=True, slots=True)
class _Posted:
    """The receiver waits for a unit."""

    index: int


@dataclass(frozen=True, slots=True)
class _Over:
    """Nothing more is to be sent."""

    reason: str


_Event = _Final | _Posted | _Over


class OutgoingTransfer:
    """Sends what a receiving rank wants of one held prompt, over one link.

    Between the two ranks 0 it also owns the engine's request.

    Args:
        held: the prompt.
        manifest: what is to be sent.
        lease: the link.
        end: this rank.

    Attributes:
        held: likewise.
        lease: likewise.
    """

    def __init__(
        self, held: HeldPrompt, manifest: TransferManifest, lease: PeerLease, end: HandoffEnd
    ) -> None:
        self.held = held
        self.lease = lease
        self._manifest = manifest
        self._planner = UnitPlanner(manifest, held.num_tokens)
        self._cache = end.cache
        self._faults = end.faults
        self._corrupting = False
        self._part_index = [end.cache.layout.index_of(part.name) for part in manifest.layout.parts]
        self._happened: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._answers: asyncio.Queue[pb.TransferResponse | TwinflowError | None] = asyncio.Queue()
        self._events = asyncio.get_running_loop()

    def on_kv(self, progress: KVProgress) -> None:
        """See `ProgressListener`."""
        for unit in self._planner.advance(progress):
            self._happened.put(_Final(unit))

    def deliver(self, engine_id: str, delta: TokenDelta) -> None:
        """See `RequestOwner.deliver`: the first token."""
        self._answer(pb.TransferResponse(prefilled=output_to_pb("", 0, delta)))

    def fail(self, engine_id: str, error: TwinflowError) -> None:
        """See `RequestOwner.fail`."""
        self._answer(pb.TransferResponse(prefilled=failure_to_pb("", 0, error)))

    def flush(self) -> None:
        """See `RequestOwner.flush`."""

    def posted(self, index: int) -> None:
        """The receiver waits for a unit."""
        self._happened.put(_Posted(index))

    def over(self, reason: str) -> None:
        """Nothing more is to be sent: wrong, unless everything was."""
        self._happened.put(_Over(reason))

    def ended(self, task: "asyncio.Task[None]") -> None:
        """The conversation has ended: the last answer."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            foreseen = isinstance(error, TwinflowError)
            structlog.get_logger().warning(
                "hand-off failed",
                transfer=self._manifest.transfer_id,
                peer=str(self.lease.peer),
                problem=str(error),
                exc_info=None if foreseen else error,
            )
            self._answer(error if isinstance(error, TwinflowError) else HandoffError(str(error)))
        self._answer(None)

    async def next_answer(self, patience_s: float) -> pb.TransferResponse | None:
        """What to tell the decode worker next; an empty message if there is nothing for a while.

        Returns:
            None after the last answer.

        Raises:
            TwinflowError: the hand-off failed.
        """
        try:
            async with asyncio.timeout(patience_s):
                answer = await self._answers.get()
        except TimeoutError:
            return pb.TransferResponse()
        if isinstance(answer, TwinflowError):
            raise answer
        return answer

    def work_link(self, patience_s: float) -> None:
        """The transfer thread: announce what is final, send what is waited for.

        Args:
            patience_s: how long the receiver may take to post what was announced.

        Raises:
            HandoffError: the transfer failed.
        """
        sender = UnitSender(self.lease.connect(), self._manifest, self._unit_page)
        announced = 0
        while not sender.complete:
            match self._next_event(announced, patience_s):
                case _Final(unit):
                    self._announce(sender.announce(unit))
                    announced += 1
                case _Posted(index):
                    self._corrupting = self._faults.reach(Point.HAND_OFF)
                    sender.send(index, patience_s)
                    announced -= 1
                case _Over(reason):
                    raise HandoffError(reason)

    def _next_event(self, announced: int, patience_s: float) -> _Event:
        """What has happened next. The engine may take its time, the receiver may not."""
        try:
            return self._happened.get(timeout=patience_s if announced else None)
        except queue.Empty:
            raise HandoffError(
                f"{self.lease.peer} posted no receive for {announced} announced units within "
                f"{patience_s:g} s"
            ) from None

    def _announce(self, promise: UnitAnnouncement) -> None:
        unit = promise.unit
        ready = pb.UnitReady(
            unit=unit.index,
            first_block=unit.first_block,
            num_blocks=unit.num_blocks,
            first_layer=unit.first_layer,
            num_layers=unit.num_layers,
            bytes_per_block=promise.bytes_per_block,
            digests=promise.digests,
            part=unit.part,
        )
        self._events.call_soon_threadsafe(self._answer, pb.TransferResponse(ready=ready))

    def _answer(self, answer: pb.TransferResponse | TwinflowError | None) -> None:
        self._answers.put_nowait(answer)

    def _unit_page(self, block: int, first_layer: int, num_layers: int, part: int) -> torch.Tensor:
        entry = self.held.blocks[block]
        page = self._cache.page(entry, first_layer, num_layers, self._part_index[part])
        return _with_a_flipped_bit(page) if self._corrupting else page


def _with_a_flipped_bit(page: torch.Tensor) -> torch.Tensor:
    """A copy of a page of which one bit is another; the page itself stays as it is."""
    copy = page.clone()
    copy.view(-1).view(torch.uint8)[0] ^= 1
    return copy
