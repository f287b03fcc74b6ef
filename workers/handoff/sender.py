"""The prefill worker's half of a hand-off.

A decode worker asks for the KV of a prompt and says what it has room for. The engine computes the
prompt as a held request; every finished layer range is announced and sent while the next one is
computed. The conversation is the lease: while it lasts the blocks are held, and no longer.

    engine thread    says which layers of which tokens are final (`on_kv`)
    event loop       the conversation with the decode worker
    transfer thread  the link: digests and sends
"""

import asyncio
import queue
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog
import torch

from twinflow.parallel.links.manifest import (
    TransferManifest,
    Unit,
    UnitAnnouncement,
    layer_units,
)
from twinflow.parallel.links.pool import LinkLease
from twinflow.parallel.links.transfer import UnitSender
from twinflow.protos.errors import HandoffError, TwinflowError, Unavailable
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.build import BuiltEngine
from twinflow.runtime.engine import KVProgress
from twinflow.runtime.outputs import TokenDelta
from twinflow.workers.convert import failure_to_pb, output_to_pb, request_from_pb
from twinflow.workers.core import WorkerCore
from twinflow.workers.handoff.links import PeerLinks


class UnitPlanner:
    """Turns the engine's progress into units: which blocks became final in which layers.

    A block is sent once all its tokens are computed, or the prompt has ended in it. Blocks that
    the engine found in its prefix cache are final from the start, in all layers.

    Args:
        manifest: what is to be sent.
        num_tokens: tokens of the prompt.
    """

    def __init__(self, manifest: TransferManifest, num_tokens: int) -> None:
        self._manifest = manifest
        self._num_tokens = num_tokens
        self._next_block = manifest.first_block
        self._next_index = 0

    def advance(self, progress: KVProgress) -> list[Unit]:
        """Units that have become final with this progress."""
        size = self._manifest.layout.block_size
        units: list[Unit] = []
        found = progress.token_start // size
        if progress.first_layer == 0 and found > self._next_block:
            for first, count in layer_units(
                self._manifest.layout.num_layers, self._manifest.layers_per_unit
            ):
                units += self._unit(found, first, count)
            self._next_block = found
        ended = progress.token_end >= self._num_tokens
        last = self._manifest.first_block + self._manifest.num_blocks
        end = last if ended else min(progress.token_end // size, last)
        units += self._unit(end, progress.first_layer, progress.end_layer - progress.first_layer)
        if progress.end_layer == self._manifest.layout.num_layers:
            self._next_block = max(self._next_block, end)
        return units

    def _unit(self, end_block: int, first_layer: int, num_layers: int) -> list[Unit]:
        if end_block <= self._next_block:
            return []
        count = end_block - self._next_block
        unit = Unit(self._next_index, self._next_block, count, first_layer, num_layers)
        self._next_index += 1
        return [unit]


@dataclass(frozen=True, slots=True)
class _Final:
    """A unit whose pages will not change any more."""

    unit: Unit


@dataclass(frozen=True, slots=True)
class _Posted:
    """The receiver waits for a unit."""

    index: int


_Event = _Final | _Posted | None
_Answer = pb.TransferResponse | TwinflowError


class OutgoingTransfer:
    """One hand-off at the prefill worker; owns the held request.

    Args:
        engine_id: the held request.
        manifest: what is to be sent.
        num_tokens: tokens of the prompt.
        page: memory of (cache block, first layer, layers).
    """

    def __init__(
        self,
        engine_id: str,
        manifest: TransferManifest,
        num_tokens: int,
        page: Callable[[int, int, int], torch.Tensor],
    ) -> None:
        self.engine_id = engine_id
        self.manifest = manifest
        self.answers: asyncio.Queue[_Answer] = asyncio.Queue()
        self._planner = UnitPlanner(manifest, num_tokens)
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._blocks: tuple[int, ...] = ()
        self._page = page
        self._loop = asyncio.get_running_loop()

    def on_kv(self, progress: KVProgress) -> None:
        """The engine has finished layers; called on its thread, within a step."""
        self._blocks = tuple(progress.blocks)
        for unit in self._planner.advance(progress):
            self._events.put(_Final(unit))

    def posted(self, index: int) -> None:
        """The receiver waits for a unit."""
        self._events.put(_Posted(index))

    def give_up(self) -> None:
        """Make the transfer thread leave if it waits for an event."""
        self._events.put(None)

    def deliver(self, engine_id: str, delta: TokenDelta) -> None:
        """See `RequestOwner.deliver`: the first token."""
        output = output_to_pb("", 0, delta)
        self.answers.put_nowait(pb.TransferResponse(prefilled=output))

    def fail(self, engine_id: str, error: TwinflowError) -> None:
        """See `RequestOwner.fail`."""
        output = failure_to_pb("", 0, error)
        self.answers.put_nowait(pb.TransferResponse(prefilled=output))

    def flush(self) -> None:
        """See `RequestOwner.flush`."""

    def work_link(self, lease: LinkLease, patience_s: float) -> None:
        """The transfer thread: announce what is final, send what is waited for.

        Raises:
            HandoffError: the transfer failed.
        """
        sender = UnitSender(lease.connect(), self.manifest, self._unit_page)
        announced = 0
        while not sender.complete:
            try:
                event = self._events.get(timeout=patience_s if announced else None)
            except queue.Empty:
                raise HandoffError(
                    f"{lease.peer} posted no receive for {announced} announced units within "
                    f"{patience_s:g} s"
                ) from None
            match event:
                case _Final(unit):
                    self._announce(sender.announce(unit))
                    announced += 1
                case _Posted(index):
                    sender.send(index, patience_s)
                    announced -= 1
                case None:
                    raise HandoffError("the hand-off was given up")

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
        )
        response = pb.TransferResponse(ready=ready)
        self._loop.call_soon_threadsafe(self.answers.put_nowait, response)

    def _unit_page(self, block: int, first_layer: int, num_layers: int) -> torch.Tensor:
        return self._page(self._blocks[block], first_layer, num_layers)


class KVSender:
    """Serves the hand-offs that decode workers ask for.

    Args:
        core: of this worker.
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
        self._transfers: dict[str, OutgoingTransfer] = {}

    def __len__(self) -> int:
        return len(self._transfers)

    def on_kv(self, progress: KVProgress) -> None:
        """The engine has finished layers of a held request; called on its thread."""
        transfer = self._transfers.get(progress.request_id)
        if transfer is not None:
            transfer.on_kv(progress)

    async def serve(
        self, requests: AsyncIterator[pb.TransferRequest]
    ) -> AsyncGenerator[pb.TransferResponse, None]:
        """One hand-off: the messages for the decode worker.

        Raises:
            TwinflowError: it was refused or failed; every block is given back.
        """
        patience = self._core.config.kv_transfer_timeout_s
        first = await asyncio.wait_for(anext(aiter(requests)), patience)
        if first.WhichOneof("message") != "open":
            raise HandoffError("a hand-off begins with `open`")
        transfer = self._accept(first.open)
        lease = self._links.lease_sending(first.open)
        self._transfers[transfer.engine_id] = transfer
        self._core.submit(
            request_from_pb(first.open.submission, transfer.engine_id, hold=True), transfer
        )
        conversation = asyncio.create_task(self._converse(requests, transfer, lease))
        conversation.add_done_callback(lambda task: _end_answers(task, transfer))
        try:
            while True:
                answer = await transfer.answers.get()
                if isinstance(answer, TwinflowError):
                    raise answer
                yield answer
                if answer.WhichOneof("message") is None:
                    return
        finally:
            conversation.cancel()
            await asyncio.gather(conversation, return_exceptions=True)

    async def _converse(
        self,
        requests: AsyncIterator[pb.TransferRequest],
        transfer: OutgoingTransfer,
        lease: LinkLease,
    ) -> None:
        """Work the link until the receiver has everything; then give the blocks back."""
        events = asyncio.get_running_loop()
        work = events.run_in_executor(
            self._links.threads,
            transfer.work_link,
            lease,
            self._core.config.kv_transfer_timeout_s,
        )
        ended_well = False
        try:
            await self._hear(requests, transfer, asyncio.ensure_future(work))
            ended_well = True
        finally:
            transfer.give_up()
            await _quiet(lease.release if ended_well else lease.discard)
            await asyncio.gather(work, return_exceptions=True)
            self._forget(transfer)

    async def _hear(
        self,
        requests: AsyncIterator[pb.TransferRequest],
        transfer: OutgoingTransfer,
        work: "asyncio.Future[None]",
    ) -> None:
        """Take the receiver's messages until it is done; the link's failure ends it too."""
        reader = asyncio.create_task(_read(requests, transfer))
        try:
            await asyncio.wait({reader, work}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                # Everything is sent: what is left is the receiver's word that it is right.
                await asyncio.wait_for(reader, self._core.config.lease_s)
            else:
                reader.result()
                raise HandoffError("the decode worker was done before everything was sent")
        except TimeoutError as error:
            raise HandoffError(
                f"the decode worker did not confirm within {self._core.config.lease_s:g} s"
            ) from error
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    def _accept(self, opening: pb.TransferOpen) -> OutgoingTransfer:
        """Check what a decode worker asks for against what this worker is.

        Raises:
            HandoffError: it means another worker life, model, layout or sequence.
            Unavailable: this worker is draining.
        """
        me, who = self._me, f"hand-off to {opening.receiver_id}"
        if self._core.draining:
            raise Unavailable(f"{who}: worker {me.worker_id} is draining")
        if opening.sender_epoch != me.epoch:
            raise HandoffError(
                f"{who}: means epoch {opening.sender_epoch} of {me.worker_id}, which is in epoch "
                f"{me.epoch}"
            )
        if opening.model_fingerprint != me.model_fingerprint:
            raise HandoffError(f"{who}: serves another model, or in another dtype")
        if opening.layers_per_unit != self._built.layers_per_unit:
            raise HandoffError(f"{who}: wants {opening.layers_per_unit} layers per unit")
        manifest = TransferManifest(
            transfer_id=opening.transfer_id,
            layout=self._built.layout,
            first_block=opening.first_block,
            num_blocks=opening.num_blocks,
            layers_per_unit=opening.layers_per_unit,
        )
        manifest.check_layout(opening.kv_layout)
        submission = opening.submission
        num_tokens = len(submission.prompt_token_ids) + len(submission.output_token_ids)
        if opening.first_block + opening.num_blocks != self._core_blocks(num_tokens):
            raise HandoffError(f"{who}: {num_tokens} tokens do not end in the last block asked for")
        engine_id = f"transfer/{opening.transfer_id}"
        if engine_id in self._transfers:
            raise HandoffError(f"{who}: transfer {opening.transfer_id} is under way already")
        return OutgoingTransfer(engine_id, manifest, num_tokens, self._built.cache.page)

    def _core_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._built.layout.block_size)

    def _forget(self, transfer: OutgoingTransfer) -> None:
        """Give the held request's blocks back; nothing reads them any more."""
        del self._transfers[transfer.engine_id]
        self._core.abort(transfer.engine_id)

    async def close(self) -> None:
        """Close the links; conversations end with their streams."""
        await self._links.close()


async def _read(requests: AsyncIterator[pb.TransferRequest], transfer: OutgoingTransfer) -> None:
    """Pass on posted receives; returns at the receiver's word that it has everything."""
    async for request in requests:
        kind = request.WhichOneof("message")
        if kind == "done":
            return
        if kind != "posted":
            raise HandoffError(f"unexpected message {kind!r} in a hand-off")
        transfer.posted(request.posted.unit)
    raise HandoffError("the decode worker ended the hand-off before it was done")


def _end_answers(task: "asyncio.Task[None]", transfer: OutgoingTransfer) -> None:
    """The last answer: an empty message if all went well, the error if not."""
    if task.cancelled():
        return
    error = task.exception()
    if error is None:
        transfer.answers.put_nowait(pb.TransferResponse())
        return
    structlog.get_logger().warning(
        "hand-off failed", transfer=transfer.manifest.transfer_id, problem=str(error)
    )
    known = error if isinstance(error, TwinflowError) else HandoffError(str(error))
    transfer.answers.put_nowait(known)


async def _quiet(close: Callable[[], None]) -> None:
    """Close or keep a link, to the end even if the caller is cancelled."""
    with suppress(asyncio.CancelledError):
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, close))
