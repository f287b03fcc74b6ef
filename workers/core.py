"""The heart of a worker: an engine on its thread, and what surrounds it on the event loop.

Sessions and hand-offs come here to submit and abort; the engine's outputs go out from here. No
gRPC in this module.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from twinflow.protos.errors import EngineError, TwinflowError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.engine import Engine
from twinflow.runtime.lifecycle import ReceiveOrder
from twinflow.runtime.request import Request
from twinflow.workers.config import WorkerConfig
from twinflow.workers.engine_loop import EngineLoop
from twinflow.workers.outputs import OutputRouter, RequestOwner

_DRAIN_POLL_S = 0.02


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
    """Totals of KV hand-offs since the start, both directions."""

    bytes: int = 0
    seconds: float = 0.0
    completed: int = 0
    failed: int = 0
    digests_refused: int = 0


@dataclass(slots=True)
class WorkerState:
    """What changes in a worker's life besides its requests."""

    draining: bool = False
    death: EngineError | None = None
    handoffs: HandoffCounters = field(default_factory=HandoffCounters)


class WorkerCore:
    """An engine, its requests' owners, and its hand-offs.

    Args:
        config: of the worker.
        engine: not yet running.
    """

    def __init__(self, config: WorkerConfig, engine: Engine) -> None:
        self.config = config
        self.state = WorkerState()
        self._fetcher: KVFetcher | None = None
        self.outputs = OutputRouter(self._receive)
        self.loop = EngineLoop(engine, publish=self.outputs.publish, on_death=self._die)

    def start(self, fetcher: KVFetcher) -> None:
        """Start the engine's thread; call from the event loop."""
        self._fetcher = fetcher
        self.loop.start()

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self.state.draining or self.state.death is not None

    def submit(self, request: Request, owner: RequestOwner) -> None:
        """Queue a request; refusals reach the owner as failures."""
        engine_id = request.request_id
        self.outputs.own(engine_id, owner)
        if self.state.death is not None:
            self.outputs.fail(engine_id, self.state.death)
            return

        def add(engine: Engine) -> None:
            try:
                engine.add_request(request)
            except TwinflowError as error:
                self.loop.to_events(self.outputs.fail, engine_id, error)

        self.loop.post(add)

    def abort(self, engine_id: str) -> None:
        """End a request silently."""
        self.outputs.disown(engine_id)
        if self._fetcher is not None:
            self._fetcher.cancel(engine_id)
        self.loop.post(lambda engine: engine.abort(engine_id))

    async def drain(self, timeout_s: float) -> int:
        """Take no new requests and wait for the running ones; returns how many are left.

        Held requests are waited for too: another worker still reads their blocks.
        """
        self.state.draining = True
        events = asyncio.get_running_loop()
        end = events.time() + timeout_s
        while len(self.outputs) and events.time() < end:
            await asyncio.sleep(_DRAIN_POLL_S)
        return len(self.outputs)

    def stats(self) -> pb.WorkerStats:
        """Load and totals, as routers and metrics want them."""
        now, handoffs = self.loop.snapshot, self.state.handoffs
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
            draining=self.draining,
            steps=now.steps,
        )

    def _receive(self, order: ReceiveOrder) -> None:
        if self._fetcher is not None:
            self._fetcher.start(order)

    def _die(self, error: EngineError) -> None:
        structlog.get_logger().error("engine failed for good", error=str(error))
        self.state.death = error
        self.outputs.fail_all(error)
