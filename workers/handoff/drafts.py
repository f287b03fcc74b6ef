"""Hand-offs of the KV of a model that drafts, beside those of the model that is served.

    decode worker     KV of the target is here ── worth it? ── asks; decodes without proposals
    prefill worker    the drafter computes the prompt between steps, exactly, and sends its KV
    decode worker     all of it here and right: drafts from it. Else the drafter computes the prompt

A conversation of its own, over links like any other, between the two ranks 0: a drafter whose KV is
spread over ranks computes prompts where they arrive. It begins when the target's KV is here, so
that no first token waits for it, and what becomes of it can only cost proposals.
"""

import asyncio
import uuid
from array import array
from dataclasses import dataclass, replace
from functools import partial

import structlog

from twinflow.parallel.latent.block_share import BlockShare
from twinflow.protos.errors import HandoffError, StaleLink, TwinflowError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.engine import Engine
from twinflow.runtime.kv_progress import KVProgress
from twinflow.runtime.lifecycle import ReceiveOrder
from twinflow.runtime.request import Request
from twinflow.runtime.speculative.draft_arrival import Arrival, ArrivalChoice
from twinflow.runtime.speculative.drafters.draft_kv import DraftKV
from twinflow.workers.convert import request_from_pb
from twinflow.workers.core import WorkerCore
from twinflow.workers.handoff.end import HandoffEnd
from twinflow.workers.handoff.fetching import RankReceiver, Tally
from twinflow.workers.handoff.first_token import FirstToken
from twinflow.workers.handoff.held import held_id
from twinflow.workers.handoff.orders import Fetch
from twinflow.workers.handoff.sender import KVSender
from twinflow.workers.outputs import RequestOwner


def _draft_end(end: HandoffEnd, kv: DraftKV) -> HandoffEnd:
    """The end of hand-offs of a drafter's KV, on rank 0 of a worker whose other end this is."""
    return replace(
        end,
        fingerprint=kv.fingerprint,
        cache=kv.cache,
        layers_per_unit=kv.cache.layout.num_layers,
        share=BlockShare(kv.block_size),
        draft=True,
    )


class DraftPrompts:
    """Has prompts computed by the drafter of a prefill worker.

    Args:
        core: whose engine drafts.
        kv: of the drafter.
    """

    def __init__(self, core: WorkerCore, kv: DraftKV) -> None:
        self._core = core
        self._kv = kv
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._sender: KVSender | None = None

    def serve(self, sender: KVSender) -> None:
        """Hand the prompts over with a sender, which was made for them."""
        self._sender = sender

    def request(self, opening: pb.TransferOpen) -> Request:
        """See `Prompts.request`."""
        if self._core.refusal is not None:
            raise self._core.refusal
        return request_from_pb(opening.submission, held_id(opening.transfer_id), hold=True)

    def compute(self, transfer_id: str, request: Request, owner: RequestOwner) -> None:
        """See `Prompts.compute`."""
        work = asyncio.create_task(self._compute(transfer_id, request, owner))
        self._tasks[transfer_id] = work

    async def drop(self, transfer_id: str, *, complete: bool) -> None:
        """See `Prompts.drop`: the KV is on this rank alone."""

    def free(self, transfer_id: str) -> None:
        """See `Prompts.free`."""
        self._tasks.pop(transfer_id).cancel()
        self._core.loop.post(lambda _: self._kv.drop(transfer_id))

    async def _compute(self, transfer_id: str, request: Request, owner: RequestOwner) -> None:
        """A pass at a time, so that steps of the engine come between."""
        name, end, count = held_id(transfer_id), 0, request.num_tokens
        try:
            await self._core.loop.call(lambda _: self._kv.hold(transfer_id, request.token_ids))
            while end < count:
                start, end, blocks = await self._core.loop.call(
                    lambda _: self._kv.compute(transfer_id)
                )
                if self._sender is not None:
                    layers = self._kv.cache.layout.num_layers
                    self._sender.on_kv(KVProgress(name, 0, layers, start, end, blocks))
        except TwinflowError as error:
            owner.fail(name, error)
        except Exception as error:  # noqa: BLE001 - the drafter's, and it costs a hand-off
            structlog.get_logger().exception("the drafter failed with a prompt")
            owner.fail(name, HandoffError(f"{type(error).__name__}: {error}"))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is fetched."""

    name: str
    submission: pb.Submission
    blocks: tuple[int, ...]
    arrival: Arrival
    token_s: float | None


class DraftReceiver:
    """Fetches KV for the drafter of a decode worker.

    Args:
        end: of the drafter's KV.
        core: whose engine drafts.
        kv: of the drafter.
        choice: says what is fetched.

    Attributes:
        arrivals: what has come of it; of the worker.
    """

    def __init__(
        self, end: HandoffEnd, core: WorkerCore, kv: DraftKV, choice: ArrivalChoice
    ) -> None:
        self._end = end
        self._core = core
        self._kv = kv
        self._choice = choice
        self._receiver = RankReceiver(end)
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self.arrivals = core.state.draft_arrivals

    def __len__(self) -> int:
        return len(self._fetches) + len(self._receiver)

    def settle(self, engine: Engine, order: ReceiveOrder) -> None:
        """Fetch the KV for a request that is about to decode, or leave it to the drafter; on the
        engine's thread."""
        request, submission = order.request, order.request.fetch_from
        if request.doomed or not self._kv.usable or not isinstance(submission, pb.Submission):
            return
        tokens = (*submission.prompt_token_ids, *submission.output_token_ids)
        count = -(-len(tokens) // self._kv.block_size)
        arrival = Arrival(
            len(tokens),
            count * self._kv.cache.layout.block_bytes,
            decoding=len(engine.queues.running),
            awaited=len(engine.queues.receiving) - 1,
        )
        totals = self._core.state.handoffs
        link, token_s = (totals.seconds, float(totals.bytes)), self._kv.token_s
        prompt = None
        if self._choice.hand_over(arrival, token_s=token_s, link=link):
            prompt = self._kv.expect(request.request_id, tokens)
        if prompt is None:
            self.arrivals.rebuilt += 1
            return
        wanted = _Wanted(request.request_id, submission, prompt.blocks, arrival, token_s)
        self._core.loop.to_events(self._start, wanted)

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
        await self._receiver.close()

    def _start(self, wanted: _Wanted) -> None:
        fetch = asyncio.create_task(self._fetch(wanted), name=f"fetch-draft-{wanted.name}")
        self._fetches[wanted.name] = fetch
        fetch.add_done_callback(partial(self._report, wanted.name))

    async def _fetch(self, wanted: _Wanted) -> None:
        """One hand-off; raises TwinflowError if it failed and nothing writes any more."""
        events = asyncio.get_running_loop()
        began, tally = events.time(), Tally()
        try:
            await self._attempt(wanted, tally, fresh=False)
        except StaleLink:
            tally = Tally()
            await self._attempt(wanted, tally, fresh=True)
        self._choice.note(
            wanted.arrival,
            token_s=wanted.token_s,
            elapsed_s=events.time() - began,
            link_s=tally.seconds,
        )

    async def _attempt(self, wanted: _Wanted, tally: Tally, *, fresh: bool) -> None:
        submission = wanted.submission
        first = FirstToken(self._core.loop, wanted.name, submission)
        first.known = True  # it came with the target's KV
        sender = pb.Peer()
        sender.CopyFrom(submission.prefill)
        sender.ClearField("ranks")  # which say where the target's KV is
        order = Fetch(
            transfer_id=uuid.uuid4().hex,
            sender=sender.SerializeToString(),
            first_block=0,
            num_blocks=len(wanted.blocks),
            table=array("i", wanted.blocks).tobytes(),
            deadline_ms=submission.deadline_ms,
            fresh=fresh,
        )
        self._receiver.part(await self._receiver.fetch(order, tally, first))

    def _report(self, name: str, fetch: "asyncio.Task[None]") -> None:
        """Tell the drafter how a hand-off ended."""
        del self._fetches[name]
        problem = None if fetch.cancelled() else fetch.exception()
        whole = not fetch.cancelled() and problem is None
        self.arrivals.handed_over += whole
        self.arrivals.failed += not whole
        if problem is not None:
            structlog.get_logger().warning(
                "KV for the drafter did not come; it computes the prompt here",
                request=name,
                problem=str(problem),
                exc_info=None if isinstance(problem, TwinflowError) else problem,
            )
        self._core.loop.post(lambda _: self._kv.arrived(name, whole=whole))


@dataclass(frozen=True, slots=True)
class DraftHalves:
    """Both halves of hand-offs of a drafter's KV; None where there is none to be handed over."""

    sender: KVSender | None = None
    receiver: DraftReceiver | None = None

    @classmethod
    def make(
        cls, end: HandoffEnd, core: WorkerCore, kv: DraftKV, choice: ArrivalChoice
    ) -> "DraftHalves":
        """Those of rank 0.

        Args:
            end: of hand-offs of the target's KV.
            core: whose engine drafts.
            kv: of the drafter.
            choice: what is fetched.
        """
        own, prompts = _draft_end(end, kv), DraftPrompts(core, kv)
        sender = KVSender(own, prompts)
        prompts.serve(sender)
        return cls(sender, DraftReceiver(own, core, kv, choice))
