"""The heart of a worker: an engine on its thread, and what surrounds it on the event loop.

Sessions and hand-offs come here to submit and abort; the engine's outputs go out from here. No
gRPC in this module.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import structlog

from twinflow.protos.errors import (
    EngineError,
    HandoffError,
    InvalidRequest,
    ServerError,
    TwinflowError,
    Unavailable,
    WorkerLost,
)
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.engine import Engine
from twinflow.runtime.layer_traffic import LayerTotals
from twinflow.runtime.lifecycle import ReceiveOrder
from twinflow.runtime.request import Request
from twinflow.runtime.speculative.speculation import Speculation
from twinflow.workers.config import WorkerConfig
from twinflow.workers.convert import goodput_to_pb, lane_stats_to_pb, speculation_to_pb
from twinflow.workers.engine_loop import EngineLoop
from twinflow.workers.fault_points import FaultPoints, Point
from twinflow.workers.outputs import OutputRouter, RequestOwner

_DRAIN_POLL_S = 0.02
# Idle workers tell their figures twice a second: the last totals are told behind the last step.
_EXPERTS_PERIOD_S = 0.45


class KVFetcher(Protocol):
    """Fetches KV that another worker computes."""

    def start(self, order: ReceiveOrder) -> None:
        """The engine has reserved the blocks."""
        ...

    def cancel(self, engine_id: str) -> None:
        """The request was aborted; unknown ids are fine."""
        ...


@dataclass(slots=True)
class HandoffCounters:
    """Totals of the hand-offs that this worker received, since its start."""

    bytes: int = 0
    seconds: float = 0.0
    completed: int = 0
    failed: int = 0
    digests_refused: int = 0


@dataclass(slots=True)
class DraftArrivals:
    """What became of prompts whose KV of the target has come; totals.

    Attributes:
        handed_over: KV of the drafter has come too.
        failed: it was asked for and has not come, so the drafter computes the prompt.
        rebuilt: it was not asked for, and the drafter computes the prompt.
    """

    handed_over: int = 0
    failed: int = 0
    rebuilt: int = 0


@dataclass(slots=True)
class WorkerState:
    """What changes in a worker's life besides its requests."""

    draining: bool = False
    death: WorkerLost | None = None
    handoffs: HandoffCounters = field(default_factory=HandoffCounters)
    draft_arrivals: DraftArrivals = field(default_factory=DraftArrivals)


class WorkerCore:
    """An engine, its requests' owners, and its hand-offs.

    Args:
        config: of the worker.
        engine: not yet running.
        vocab_size: tokens that the engine's model knows.
        faults: where the worker fails if a test wants it; by default nowhere.
        speculation: of the engine; None for none.
    """

    def __init__(
        self,
        config: WorkerConfig,
        engine: Engine,
        vocab_size: int,
        faults: FaultPoints | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        self.config = config
        self.faults = faults or FaultPoints(None, config.process_name)
        self.state = WorkerState()
        self._vocab_size = vocab_size
        self._speculation = speculation
        self._fetcher: KVFetcher | None = None
        self._died = asyncio.Event()
        self._experts: Sequence[pb.ExpertLayerStats] = ()
        self._experts_due = 0.0
        self.outputs = OutputRouter(self._receive)
        self.loop = EngineLoop(engine, publish=self.outputs.publish, on_death=self._die)

    def start(self, fetcher: KVFetcher) -> None:
        """Start the engine's thread; call from the event loop."""
        self._fetcher = fetcher
        self.loop.start()

    @property
    def refusal(self) -> ServerError | None:
        """Why new requests are refused, if they are."""
        if self.state.draining:
            return Unavailable(f"worker {self.config.worker_id} is draining")
        return self.state.death

    def submit(self, request: Request, owner: RequestOwner) -> None:
        """Queue a request; refusals reach the owner as failures."""
        engine_id = request.request_id
        error = self.refusal or self._fault(request)
        if error is not None:
            owner.fail(engine_id, error)
            owner.flush()
            return
        self.outputs.own(engine_id, owner)
        self.loop.post(partial(self._add, request))
        self.faults.reach(Point.QUEUED)

    def _fault(self, request: Request) -> InvalidRequest | None:
        """What is wrong with a request; one that got as far as a step would fail its neighbours."""
        if request.request_id in self.outputs:
            return InvalidRequest(f"request {request.request_id} is here already.")
        tokens = request.token_ids
        if tokens and not 0 <= min(tokens) <= max(tokens) < self._vocab_size:
            return InvalidRequest(
                f"the prompt has a token outside the vocabulary of {self._vocab_size}.", "prompt"
            )
        return None

    def _add(self, request: Request, engine: Engine) -> None:
        try:
            engine.add_request(request)
        except TwinflowError as error:
            self.loop.to_events(self.outputs.fail, request.request_id, error)
        except Exception as error:  # noqa: BLE001 - one request must not end the engine
            structlog.get_logger().exception("a request was not taken in")
            failure = EngineError(f"{type(error).__name__}: {error}")
            self.loop.to_events(self.outputs.fail, request.request_id, failure)

    def abort(self, engine_id: str) -> None:
        """End a request silently."""
        self.outputs.disown(engine_id)
        if self._fetcher is not None:
            self._fetcher.cancel(engine_id)
        self.loop.post(lambda engine: engine.abort(engine_id))

    async def wait_death(self) -> WorkerLost:
        """Wait until the engine has failed for good; returns what its requests were told."""
        while self.state.death is None:
            await self._died.wait()
        return self.state.death

    async def drain(self, timeout_s: float) -> int:
        """Take no new requests and wait for the running ones; returns how many are left.

        Held requests are waited for too: another worker still reads their blocks.
        """
        self.state.draining = True
        self.faults.reach(Point.DRAINING)
        events = asyncio.get_running_loop()
        end = events.time() + timeout_s
        while len(self.outputs) and events.time() < end:
            await asyncio.sleep(_DRAIN_POLL_S)
        return len(self.outputs)

    def stats(self) -> pb.WorkerStats:
        """Load and totals, as routers and metrics want them."""
        now, handoffs = self.loop.snapshot, self.state.handoffs
        speculation = speculation_to_pb(now.speculation)
        if now.goodput is not None:
            speculation.goodput.CopyFrom(goodput_to_pb(now.goodput))
        if self._speculation is not None:
            speculation.drafter_failed = self._speculation.failure is not None
        drafts = self.state.draft_arrivals
        speculation.draft_kv.handed_over = drafts.handed_over
        speculation.draft_kv.failed = drafts.failed
        speculation.draft_kv.rebuilt = drafts.rebuilt
        return pb.WorkerStats(
            num_running=now.num_running,
            num_waiting=now.num_waiting,
            num_receiving=now.num_receiving,
            waiting_tokens=now.waiting_tokens,
            free_blocks=now.free_blocks,
            total_blocks=now.total_blocks,
            leased_blocks=now.leased_blocks,
            prompt_tokens=now.prompt_tokens,
            generation_tokens=now.generation_tokens,
            preemptions=now.preemptions,
            prefix_queries=now.prefix_queries,
            prefix_hits=now.prefix_hits,
            handoff_bytes=handoffs.bytes,
            handoff_seconds=handoffs.seconds,
            handoffs_completed=handoffs.completed,
            handoffs_failed=handoffs.failed,
            digests_refused=handoffs.digests_refused,
            draining=self.refusal is not None,
            steps=now.steps,
            busy_seconds=now.busy_seconds,
            ranks=self.config.tensor_parallel_size,
            expert_layers=self._expert_layers(now.experts),
            speculation=speculation,
            lanes=lane_stats_to_pb(now.lanes) if now.lanes is not None else None,
            quarantined_blocks=now.quarantined_blocks,
        )

    def _expert_layers(self, experts: Mapping[int, LayerTotals]) -> Sequence[pb.ExpertLayerStats]:
        """Totals of every layer, which change with each step and are made anew twice a second:
        there may be many, each step tells of them, and whoever reads them reads metrics."""
        if not experts:
            return ()
        now = asyncio.get_running_loop().time()
        if now >= self._experts_due:
            self._experts_due = now + _EXPERTS_PERIOD_S
            self._experts = [
                pb.ExpertLayerStats(
                    layer=layer,
                    steps=totals.steps,
                    distinct=totals.distinct,
                    loaded_bytes=totals.loaded_bytes,
                )
                for layer, totals in experts.items()
            ]
        return self._experts

    async def check_integrity(self) -> None:
        """Recount the engine's queues and blocks between two steps.

        Raises:
            AssertionError: they disagree.
            Unavailable: the engine has stopped.
        """
        await self.loop.call(Engine.check_integrity)

    def _receive(self, order: ReceiveOrder) -> None:
        engine_id = order.request.request_id
        if self._fetcher is None or engine_id not in self.outputs:
            # Aborted while the order was on its way here: nobody has asked for the KV yet.
            error = HandoffError("the request was aborted")
            self.loop.post(lambda engine: engine.receive_failed(engine_id, error))
            return
        self._fetcher.start(order)

    def _die(self, error: EngineError) -> None:
        """Fail every request in a way that lets its gateway go on elsewhere."""
        structlog.get_logger().error("the engine failed for good", error=str(error))
        lost = WorkerLost(f"the engine of worker {self.config.worker_id} failed for good: {error}")
        self.state.death = lost
        self._died.set()
        for engine_id in self.outputs:
            if self._fetcher is not None:
                self._fetcher.cancel(engine_id)
        self.outputs.fail_all(lost)
