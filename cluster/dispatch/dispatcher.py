"""Runs sequences on the workers: route, submit, stream, and once more if a worker is lost.

The gateway knows every token it has delivered, so a sequence that loses its worker goes on
elsewhere behind its last token. Sampling noise depends on seed and position only: the client
cannot tell.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import structlog

from twinflow.cluster.dispatch.admission import AdmissionLimits, AdmissionQueue
from twinflow.cluster.dispatch.probe import Prober
from twinflow.cluster.dispatch.submission import build_submission
from twinflow.cluster.dispatch.worker_client import StatsListener, WorkerAddress, WorkerClient
from twinflow.cluster.gateway.backend import GenerationSpec, ModelInfo, Readiness
from twinflow.cluster.router.policy import RoutingPolicy
from twinflow.cluster.router.prefix_index import PrefixIndex
from twinflow.cluster.router.snapshot import Route, RouteRequest
from twinflow.protos.errors import DeadlineExceeded, Unavailable, WorkerLost
from twinflow.runtime.outputs import TokenDelta

MAX_ATTEMPTS = 2


class Dispatcher:
    """The `Backend` over a set of workers.

    Args:
        model: what is served.
        eos_token_ids: end-of-sequence tokens of the model.
        workers: all workers of the deployment.
        token: the deployment's secret.
        limits: of the admission queue.
        on_stats: hears every worker's load reports.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        model: ModelInfo,
        eos_token_ids: tuple[int, ...],
        workers: Sequence[WorkerAddress],
        token: str,
        *,
        limits: AdmissionLimits,
        on_stats: StatsListener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._eos = eos_token_ids
        self._clock = clock
        self._policy = RoutingPolicy()
        self._index = PrefixIndex(model.block_size)
        self._queue = AdmissionQueue(limits)
        self._workers = {
            where.worker_id: WorkerClient(
                where, token, on_stats=on_stats, on_change=self._worker_changed
            )
            for where in workers
        }
        self._prober = Prober(self._workers, model, eos_token_ids, clock)
        self._draining = False
        self._live = 0

    @property
    def model(self) -> ModelInfo:
        """See `Backend.model`."""
        return self._model

    @property
    def num_live(self) -> int:
        """Sequences between `generate` and their end."""
        return self._live

    @property
    def queue(self) -> AdmissionQueue:
        """What was admitted and waits for its first token."""
        return self._queue

    def start(self) -> None:
        """Connect to the workers."""
        for worker in self._workers.values():
            worker.start()

    async def close(self) -> None:
        """End all sessions."""
        await asyncio.gather(*(worker.close() for worker in self._workers.values()))

    async def drain(self, timeout_s: float) -> int:
        """Admit nothing more and wait for the live sequences; returns how many are left."""
        self._draining = True
        end = self._clock() + timeout_s
        while self._live and self._clock() < end:
            await asyncio.sleep(0.05)
        return self._live

    def admit(self, specs: tuple[GenerationSpec, ...]) -> None:
        """See `Backend.admit`."""
        if self._draining:
            raise Unavailable("The server is shutting down.", retry_after_s=5.0)
        if not any(worker.up for worker in self._workers.values()):
            raise Unavailable("No worker is available.", retry_after_s=2.0)
        self._queue.admit(specs)

    def release(self, spec: GenerationSpec) -> None:
        """See `Backend.release`."""
        self._queue.leave(spec)

    async def generate(self, spec: GenerationSpec) -> AsyncGenerator[TokenDelta, None]:
        """See `Backend.generate`."""
        deadline = self._clock() + spec.deadline_s
        emitted: list[int] = []
        excluded: set[str] = set()
        self._live += 1
        try:
            for attempt in range(MAX_ATTEMPTS):
                if self._clock() >= deadline:
                    raise DeadlineExceeded("The request's deadline passed before it was served.")
                route = self._route(spec, emitted, frozenset(excluded))
                try:
                    async with aclosing(
                        self._attempt(spec, route, attempt, emitted, deadline)
                    ) as deltas:
                        async for delta in deltas:
                            self._queue.leave(spec)
                            yield delta
                    return
                except (WorkerLost, Unavailable) as error:
                    excluded.add(route.decode.worker_id)
                    if attempt + 1 == MAX_ATTEMPTS:
                        raise
                    structlog.get_logger().warning(
                        "sequence moves to another worker",
                        request=spec.request_id,
                        delivered=len(emitted),
                        problem=str(error),
                    )
        finally:
            self._queue.leave(spec)
            self._live -= 1

    async def _attempt(
        self,
        spec: GenerationSpec,
        route: Route,
        attempt: int,
        emitted: list[int],
        deadline: float,
    ) -> AsyncGenerator[TokenDelta, None]:
        """One submission; appends what it yields to `emitted`."""
        submission = build_submission(
            spec,
            self._eos,
            route=route,
            attempt=attempt,
            emitted=emitted,
            deadline_s=deadline - self._clock(),
        )
        worker = self._workers[route.decode.worker_id]
        worker.note_assigned(0 if route.prefill else len(spec.prompt_token_ids))
        if route.prefill is not None:
            self._workers[route.prefill.worker_id].note_assigned(len(spec.prompt_token_ids))
        async with aclosing(worker.generate(submission)) as deltas:
            async for delta in deltas:
                emitted.extend(delta.token_ids)
                yield delta

    def _route(
        self, spec: GenerationSpec, emitted: Sequence[int], excluded: frozenset[str]
    ) -> Route:
        names = self._index.names(spec.prompt_token_ids, spec.cache_salt)
        request = RouteRequest(
            num_tokens=len(spec.prompt_token_ids) + len(emitted),
            max_new_tokens=(spec.params.max_tokens or 0) - len(emitted),
            prefix_hits=self._index.hits(names),
            excluded=excluded,
        )
        views = [worker.view() for worker in self._workers.values()]
        route = self._policy.route(views, request)
        self._index.record(names, (route.prefill or route.decode).worker_id)
        return route

    async def readiness(self) -> Readiness:
        """See `Backend.readiness`."""
        if self._draining:
            return Readiness(False, "the server is shutting down")
        return await self._prober.readiness()

    def alive(self) -> bool:
        """See `Backend.alive`."""
        return all(worker.running for worker in self._workers.values())

    def _worker_changed(self, worker: WorkerClient) -> None:
        if not worker.up:
            self._index.forget(worker.where.worker_id)
