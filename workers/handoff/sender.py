"""What one rank of a prefill worker hands over.

A decode worker asks for the KV of a prompt and says what it has room for. The engine computes the
prompt as a held request; every finished layer range is announced and sent while the next one is
computed. The conversation between the two ranks 0 is the lease: while it lasts the blocks are
held, and no longer. Other ranks of the decode worker join it, each in a conversation of its own
with a rank that has what it needs; these end before the blocks are freed.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from twinflow.parallel.links.manifest import TransferManifest
from twinflow.protos.errors import HandoffError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.kv_progress import KVProgress
from twinflow.workers.handoff.end import HandoffEnd
from twinflow.workers.handoff.ending import look_away, to_the_end
from twinflow.workers.handoff.held import HeldPrompt, held_id
from twinflow.workers.handoff.outgoing import OutgoingTransfer
from twinflow.workers.handoff.prompts import Prompts

# Signs of life are given this many times as often as the receiver needs them.
_SIGNS_OF_LIFE = 4


class KVSender:
    """Serves the hand-offs that ranks of decode workers ask for; made on the event loop.

    Args:
        end: this rank.
        prompts: has them computed; None on every rank but rank 0.
        drafts: serves those that ask for KV of the model that drafts; None if there is none.
    """

    def __init__(
        self,
        end: HandoffEnd,
        prompts: Prompts | None = None,
        drafts: "KVSender | None" = None,
    ) -> None:
        self._end = end
        self._prompts = prompts
        self._drafts = drafts
        self._events = asyncio.get_running_loop()
        self._held: dict[str, HeldPrompt] = {}
        self._news = asyncio.Event()

    def __len__(self) -> int:
        own = sum(1 + len(held.conversations) for held in list(self._held.values()))
        return own if self._drafts is None else own + len(self._drafts)

    def on_kv(self, progress: KVProgress) -> None:
        """A step has finished layers of a held request; called on its thread."""
        held = self._held.get(progress.request_id)
        if held is not None:
            held.on_kv(progress)

    def hold(self, transfer_id: str, num_tokens: int) -> HeldPrompt:
        """Steps are going to compute a prompt whose KV will be asked for; called on any thread."""
        held = self._held[held_id(transfer_id)] = HeldPrompt(transfer_id, num_tokens)
        self._events.call_soon_threadsafe(self._announce)
        return held

    async def drop(self, transfer_id: str, *, complete: bool) -> None:
        """Returns when nothing of this rank reads the blocks of a prompt any more.

        Args:
            transfer_id: whose.
            complete: the receiver has everything; its conversations may end by themselves.
        """
        held = self._held.get(held_id(transfer_id))
        if held is None:
            return
        held.over = True
        # One that was begun just now must take its first step: else nothing of it would clean up.
        await asyncio.sleep(0)
        if complete and held.conversations:
            await asyncio.wait(set(held.conversations), timeout=self._end.config.lease_s)
        for conversation in held.conversations:
            conversation.cancel()
        if held.conversations:
            await asyncio.wait(set(held.conversations))
        del self._held[held_id(transfer_id)]

    async def serve(
        self, requests: AsyncIterator[pb.TransferRequest]
    ) -> AsyncGenerator[pb.TransferResponse, None]:
        """One conversation: the messages for the rank that receives.

        Raises:
            TwinflowError: it was refused or failed; every block is given back.
        """
        opening = await self._first(requests)
        sender = self._of(opening)
        if opening.HasField("submission"):
            conversation, transfer = sender._begin(requests, opening)
        else:
            held = await sender._find(opening)
            conversation, transfer = sender._join(requests, opening, held)
        conversation.add_done_callback(transfer.ended)
        patience_s = self._end.patience_s / _SIGNS_OF_LIFE
        try:
            while (answer := await transfer.next_answer(patience_s)) is not None:
                yield answer
        finally:
            conversation.cancel()
            await to_the_end(_ended(conversation))

    async def _first(self, requests: AsyncIterator[pb.TransferRequest]) -> pb.TransferOpen:
        """What the decode worker asks for."""
        try:
            async with asyncio.timeout(self._end.patience_s):
                first = await anext(aiter(requests), pb.TransferRequest())
        except TimeoutError:
            raise HandoffError("a hand-off was begun without a word") from None
        if first.WhichOneof("message") != "open":
            raise HandoffError("a hand-off begins with `open`")
        return first.open

    def _of(self, opening: pb.TransferOpen) -> "KVSender":
        """Whoever has the KV that is asked for."""
        if not opening.draft:
            return self
        if self._drafts is None:
            raise HandoffError(
                f"hand-off to {opening.receiver_id}: no model drafts on {self._end.links.me} whose "
                f"KV could be handed over"
            )
        return self._drafts

    def _begin(
        self, requests: AsyncIterator[pb.TransferRequest], opening: pb.TransferOpen
    ) -> "tuple[asyncio.Task[None], OutgoingTransfer]":
        """Lease the link and queue the prompt.

        Raises:
            HandoffError: the decode worker means another worker life, model, layout or sequence,
                or a link that is not here.
            InvalidRequest: the prompt cannot be computed.
            ServerError: this worker takes no more requests.
        """
        prompts, transfer_id = self._prompts, opening.transfer_id
        if prompts is None:
            raise HandoffError(f"{self._end.links.me} computes no prompts: ask rank 0")
        request = prompts.request(opening)
        manifest = self._check(opening, request.num_tokens)
        if held_id(transfer_id) in self._held:
            raise manifest.error("is under way already")
        lease = self._end.links.lease_sending(opening)
        held = self.hold(transfer_id, request.num_tokens)
        transfer = OutgoingTransfer(held, manifest, lease, self._end)
        held.attach(transfer)
        prompts.compute(transfer_id, request, transfer)
        return asyncio.create_task(self._lead(requests, transfer, prompts)), transfer

    def _join(
        self,
        requests: AsyncIterator[pb.TransferRequest],
        opening: pb.TransferOpen,
        held: HeldPrompt,
    ) -> "tuple[asyncio.Task[None], OutgoingTransfer]":
        """Lease the link and send what this rank has of a prompt; errors as of `_begin`."""
        manifest = self._check(opening, held.num_tokens)
        lease = self._end.links.lease_sending(opening)
        transfer = OutgoingTransfer(held, manifest, lease, self._end)
        held.attach(transfer)
        conversation = asyncio.create_task(self._converse(requests, transfer))
        held.conversations.add(conversation)
        conversation.add_done_callback(held.conversations.discard)
        return conversation, transfer

    async def _find(self, opening: pb.TransferOpen) -> HeldPrompt:
        """The prompt that another conversation is about; it may be the later one to arrive.

        Raises:
            HandoffError: it did not come, or is over.
        """
        transfer_id, patience_s = opening.transfer_id, self._end.patience_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while held_id(transfer_id) not in self._held:
                    await self._news.wait()
        held = self._held.get(held_id(transfer_id))
        if held is None or held.over:
            raise HandoffError(
                f"hand-off to {opening.receiver_id}: transfer {transfer_id} is not under way here, "
                f"and did not begin within {patience_s:g} s"
            )
        return held

    def _announce(self) -> None:
        """Let whoever waits for a prompt look for it."""
        self._news.set()
        self._news = asyncio.Event()

    def _check(self, opening: pb.TransferOpen, num_tokens: int) -> TransferManifest:
        """What is asked for, checked against what this rank is."""
        end, who = self._end, f"hand-off to {opening.receiver_id}"
        if opening.sender_epoch != end.config.epoch:
            raise HandoffError(
                f"{who}: means epoch {opening.sender_epoch} of {end.config.worker_id}, which is in "
                f"epoch {end.config.epoch}"
            )
        if opening.model_fingerprint != end.fingerprint:
            raise HandoffError(f"{who}: serves another model, or in another dtype")
        if opening.layers_per_unit != end.layers_per_unit:
            raise HandoffError(f"{who}: wants {opening.layers_per_unit} layers per unit")
        if missing := sorted(set(opening.parts).difference(end.parts)):
            raise HandoffError(f"{who}: wants KV parts {missing}, {end.links.me} has {end.parts}")
        if end.share.size > 1:
            raise HandoffError(f"{who}: {end.links.me} has not all blocks of a sequence")
        manifest = TransferManifest(
            transfer_id=opening.transfer_id,
            layout=end.cache.layout.only(opening.parts),
            first_block=opening.first_block,
            num_blocks=opening.num_blocks,
            layers_per_unit=opening.layers_per_unit,
            block_step=opening.block_step,
        )
        manifest.check_layout(opening.kv_layout)
        num_blocks = -(-num_tokens // manifest.layout.block_size)
        if not manifest.blocks[-1] < num_blocks <= manifest.blocks.stop:
            raise HandoffError(f"{who}: {num_tokens} tokens do not end in the last block asked for")
        return manifest

    async def _lead(
        self,
        requests: AsyncIterator[pb.TransferRequest],
        transfer: OutgoingTransfer,
        prompts: Prompts,
    ) -> None:
        """The conversation that the prompt is computed for; its end is that of the others."""
        transfer_id, complete = transfer.held.transfer_id, False
        try:
            await self._converse(requests, transfer)
            complete = True
        finally:
            await to_the_end(self._free(transfer_id, prompts, complete=complete))

    async def _free(self, transfer_id: str, prompts: Prompts, *, complete: bool) -> None:
        """Give the blocks back, once no rank of this worker reads them."""
        await asyncio.gather(
            self.drop(transfer_id, complete=complete), prompts.drop(transfer_id, complete=complete)
        )
        prompts.free(transfer_id)

    async def _converse(
        self, requests: AsyncIterator[pb.TransferRequest], transfer: OutgoingTransfer
    ) -> None:
        """Work the link until the receiver has everything; afterwards nothing reads the blocks."""
        reader = asyncio.create_task(_read(requests, transfer))
        work = self._events.run_in_executor(
            self._end.links.threads, transfer.work_link, self._end.patience_s
        )
        complete = False
        try:
            await self._both(reader, work)
            complete = True
        finally:
            reader.cancel()
            await to_the_end(_part(transfer, {reader, work}, complete=complete))

    async def _both(self, reader: "asyncio.Future[None]", work: "asyncio.Future[None]") -> None:
        """Wait for both halves: when one is done, so is the other, very soon."""
        lease_s = self._end.config.lease_s
        first, second = await asyncio.wait({reader, work}, return_when=asyncio.FIRST_COMPLETED)
        for half in first:
            half.result()
        if second:
            await asyncio.wait(second, timeout=lease_s)
        for half in second:
            if not half.done():
                raise HandoffError(f"the decode worker did not confirm within {lease_s:g} s")
            half.result()


async def _part(
    transfer: OutgoingTransfer, halves: "set[asyncio.Future[None]]", *, complete: bool
) -> None:
    """Keep or close the link: nothing that still reads the blocks is used."""
    transfer.held.detach(transfer)
    if complete:
        await transfer.lease.release()
        return
    for half in halves:
        look_away(half)
    transfer.over("the hand-off was given up")
    await transfer.lease.discard()


async def _read(requests: AsyncIterator[pb.TransferRequest], transfer: OutgoingTransfer) -> None:
    """Pass on what the receiver says; returns when it says that it has everything."""
    async for request in requests:
        kind = request.WhichOneof("message")
        if kind == "done":
            transfer.over(f"{transfer.lease.peer} was done before everything was sent")
            return
        if kind != "posted":
            raise HandoffError(f"unexpected message {kind!r} in a hand-off")
        transfer.posted(request.posted.unit)
    raise HandoffError(f"{transfer.lease.peer} ended the hand-off before it was done")


async def _ended(conversation: "asyncio.Task[None]") -> None:
    """Wait for the end of a conversation, whatever it is; `ended` has looked at it."""
    await asyncio.wait({conversation})
