"""The prefill worker's hand-offs.

A decode worker asks for the KV of a prompt and says what it has room for. The engine computes the
prompt as a held request; every finished layer range is announced and sent while the next one is
computed. The conversation is the lease: while it lasts the blocks are held, and no longer.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from twinflow.parallel.links.manifest import TransferManifest
from twinflow.protos.errors import HandoffError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.engine import KVProgress
from twinflow.workers.convert import request_from_pb
from twinflow.workers.handoff.end import HandoffEnd
from twinflow.workers.handoff.ending import look_away, to_the_end
from twinflow.workers.handoff.outgoing import OutgoingTransfer

# Signs of life are given this many times as often as the receiver needs them.
_SIGNS_OF_LIFE = 4


class KVSender:
    """Serves the hand-offs that decode workers ask for.

    Args:
        end: this worker.
    """

    def __init__(self, end: HandoffEnd) -> None:
        self._end = end
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
        transfer = self._accept(await self._first(requests))
        conversation = asyncio.create_task(self._converse(requests, transfer))
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

    def _accept(self, opening: pb.TransferOpen) -> OutgoingTransfer:
        """Lease the link and queue the prompt.

        Raises:
            HandoffError: the decode worker means another worker life, model, layout or sequence,
                or a link that is not here.
            InvalidRequest: the prompt cannot be computed.
            ServerError: this worker takes no more requests.
        """
        manifest = self._check(opening)
        engine_id = f"transfer/{opening.transfer_id}"
        request = request_from_pb(opening.submission, engine_id, hold=True)
        lease = self._end.links.lease_sending(opening)
        pages = self._end.built.cache.page
        transfer = OutgoingTransfer(engine_id, manifest, request.num_tokens, lease, pages)
        self._transfers[engine_id] = transfer
        self._end.core.submit(request, transfer)
        return transfer

    def _check(self, opening: pb.TransferOpen) -> TransferManifest:
        """What is asked for, checked against what this worker is."""
        me, who = self._end.me, f"hand-off to {opening.receiver_id}"
        refusal = self._end.core.refusal
        if refusal is not None:
            raise refusal
        if opening.sender_epoch != me.epoch:
            raise HandoffError(
                f"{who}: means epoch {opening.sender_epoch} of {me.worker_id}, which is in epoch "
                f"{me.epoch}"
            )
        if opening.model_fingerprint != me.model_fingerprint:
            raise HandoffError(f"{who}: serves another model, or in another dtype")
        if opening.layers_per_unit != self._end.built.layers_per_unit:
            raise HandoffError(f"{who}: wants {opening.layers_per_unit} layers per unit")
        manifest = TransferManifest(
            transfer_id=opening.transfer_id,
            layout=self._end.built.layout,
            first_block=opening.first_block,
            num_blocks=opening.num_blocks,
            layers_per_unit=opening.layers_per_unit,
        )
        manifest.check_layout(opening.kv_layout)
        submission = opening.submission
        num_tokens = len(submission.prompt_token_ids) + len(submission.output_token_ids)
        if manifest.first_block + manifest.num_blocks != self._num_blocks(num_tokens):
            raise HandoffError(f"{who}: {num_tokens} tokens do not end in the last block asked for")
        if f"transfer/{opening.transfer_id}" in self._transfers:
            raise HandoffError(f"{who}: transfer {opening.transfer_id} is under way already")
        return manifest

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._end.built.layout.block_size)

    async def _converse(
        self, requests: AsyncIterator[pb.TransferRequest], transfer: OutgoingTransfer
    ) -> None:
        """Work the link until the receiver has everything; then give the blocks back."""
        reader = asyncio.create_task(_read(requests, transfer))
        work = asyncio.get_running_loop().run_in_executor(
            self._end.links.threads, transfer.work_link, self._end.patience_s
        )
        complete = False
        try:
            await self._both(reader, work)
            complete = True
        finally:
            reader.cancel()
            await to_the_end(self._finish(transfer, {reader, work}, complete=complete))

    async def _both(self, reader: "asyncio.Future[None]", work: "asyncio.Future[None]") -> None:
        """Wait for both halves: when one is done, so is the other, very soon."""
        lease_s = self._end.core.config.lease_s
        first, second = await asyncio.wait({reader, work}, return_when=asyncio.FIRST_COMPLETED)
        for half in first:
            half.result()
        if second:
            await asyncio.wait(second, timeout=lease_s)
        for half in second:
            if not half.done():
                raise HandoffError(f"the decode worker did not confirm within {lease_s:g} s")
            half.result()

    async def _finish(
        self,
        transfer: OutgoingTransfer,
        halves: "set[asyncio.Future[None]]",
        *,
        complete: bool,
    ) -> None:
        """Keep or close the link; then free the blocks: nothing that still reads them is used."""
        if complete:
            await transfer.lease.release()
        else:
            for half in halves:
                look_away(half)
            transfer.over("the hand-off was given up")
            await transfer.lease.discard()
        del self._transfers[transfer.engine_id]
        self._end.core.abort(transfer.engine_id)


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
