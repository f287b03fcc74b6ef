"""Runs sequences on the workers: route, submit, stream, and once more if a worker is lost.

The gateway knows every token it has delivered, so a sequence that loses its worker goes on
elsewhere behind its last token. Sampling noise depends on seed and position only: the client
cannot tell.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

import structlog

from twinflow.cluster.dispatch.admission import AdmissionLimits, AdmissionQueue
from twinflow.cluster.dispatch.config import DispatchConfig
from twinflow.cluster.dispatch.probe import Prober
from twinflow.cluster.dispatch.submission import build_submission
from twinflow.cluster.dispatch.worker_client import WorkerAddress, WorkerClient
from twinflow.cluster.gateway.backend import GenerationSpec, ModelInfo, Readiness, WorkerInfo
from twinflow.cluster.router.policy import RoutingPolicy
from twinflow.cluster.router.prefix_index import PrefixIndex, PromptNames
from twinflow.cluster.router.snapshot import Route, RouteRequest, WorkerView
from twinflow.protos.errors import DeadlineExceeded, Unavailable, WorkerLost
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.outputs import TokenDelta

MAX_ATTEMPTS = 2
_DRAIN_POLL_S = 0.05


class WorkerListener(Protocol):
    """Hears of workers; `GatewayMetrics` is one."""

    def observe_worker(self, worker_id: str, role: str, stats: pb.WorkerStats) -> None:
        """A worker has reported its load and its counters."""
        ...

    def lose_worker(self, worker_id: str) -> None:
        """A worker is away; it is back when it reports."""
        ...

    def forget_worker(self, worker_id: str) -> None:
        """A worker has been away for so long that it may not come back; unless it reports."""
        ...


class Dispatcher:
    """The `Backend` over a set of workers.

    Args:
        model: what is served.
        eos_token_ids: end-of-sequence tokens of the model.
        workers: all workers of the deployment.
        token: the deployment's secret.
        limits: of the admission queue.
        listener: hears every worker's load reports, and which workers are gone.
        config: time limits.
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
        listener: WorkerListener,
        config: DispatchConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        config = config or DispatchConfig()
        self._model = model
        self._eos = eos_token_ids
        self._clock = clock
        self._policy = RoutingPolicy()
        self._index = PrefixIndex(model.block_size)
        self._queue = AdmissionQueue(limits)
        self._listener = listener
        self._workers = {
            where.worker_id: WorkerClient(
                where,
                token,
                on_stats=listener.observe_worker,
                on_change=self._worker_changed,
                config=config,
            )
            for where in workers
        }
        self._prober = Prober(self._workers, eos_token_ids, config, clock)
        self._draining = False
        self._admitted: dict[str, PromptNames] = {}

    @property
    def model(self) -> ModelInfo:
        """See `Backend.model`."""
        return self._model

    def workers(self) -> tuple[WorkerInfo, ...]:
        """See `Backend.workers`."""
        return tuple(worker.info() for worker in self._workers.values())

    @property
    def num_live(self) -> int:
        """Sequences that are admitted and not over."""
        return len(self._admitted)

    @property
    def queue(self) -> AdmissionQueue:
        """What was admitted and waits for its first token."""
        return self._queue

    @property
    def available(self) -> tuple[str, ...]:
        """Ids of the workers that sequences can be sent to now."""
        return tuple(view.worker_id for view in self._views() if view.up and not view.draining)

    def start(self) -> None:
        """Connect to the workers."""
        for worker in self._workers.values():
            worker.start()

    async def close(self) -> None:
        """End all sessions."""
        await asyncio.gather(*(worker.close() for worker in self._workers.values()))

    async def drain(self, timeout_s: float) -> int:
        """Admit nothing more and wait for what was admitted; returns how many are left."""
        self._draining = True
        end = self._clock() + timeout_s
        while self._admitted and self._clock() < end:
            await asyncio.sleep(_DRAIN_POLL_S)
        return len(self._admitted)

    def admit(self, specs: tuple[GenerationSpec, ...]) -> None:
        """See `Backend.admit`."""
        if self._draining:
            raise Unavailable("The server is shutting down.", retry_after_s=5.0)
        if not self.available:
            raise Unavailable("No worker is available.", retry_after_s=2.0)
        self._queue.admit(specs)
        # Completions of a prompt share its tokens, and so their names.
        names: dict[tuple[int, str], PromptNames] = {}
        for spec in specs:
            key = (id(spec.prompt_token_ids), spec.cache_salt)
            if key not in names:
                names[key] = PromptNames(self._index, spec.prompt_token_ids, spec.cache_salt)
            self._admitted[spec.request_id] = names[key]

    def release(self, spec: GenerationSpec) -> None:
        """See `Backend.release`."""
        self._queue.leave(spec)
        self._admitted.pop(spec.request_id, None)

    async def generate(self, spec: GenerationSpec) -> AsyncGenerator[TokenDelta, None]:
        """See `Backend.generate`."""
        deadline = self._clock() + spec.deadline_s
        emitted: list[int] = []
        excluded: set[str] = set()
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
                    if self._draining:
                        raise Unavailable("The server is shutting down.") from error
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
            self.release(spec)

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
        prompt_worker = self._workers[(route.prefill or route.decode).worker_id]
        backlogs = (prompt_worker.computing, worker.promised)
        for backlog in backlogs:
            backlog.add(spec.request_id, len(spec.prompt_token_ids) + len(emitted))
        try:
            async with aclosing(worker.generate(submission)) as deltas:
                async for delta in deltas:
                    for backlog in backlogs:
                        backlog.remove(spec.request_id)
                    emitted.extend(delta.token_ids)
                    yield delta
        finally:
            for backlog in backlogs:
                backlog.remove(spec.request_id)

    def _route(
        self, spec: GenerationSpec, emitted: Sequence[int], excluded: frozenset[str]
    ) -> Route:
        names = self._admitted[spec.request_id].names
        request = RouteRequest(
            num_tokens=len(spec.prompt_token_ids) + len(emitted),
            max_new_tokens=(spec.params.max_tokens or 0) - len(emitted),
            prefix_hits=self._index.hits(names),
            excluded=excluded,
        )
        route = self._policy.route(self._views(), request)
        # A decode worker keeps the blocks it is handed, and finds them again as well.
        self._index.record(names, route.decode.worker_id)
        if route.prefill is not None:
            self._index.record(names, route.prefill.worker_id)
        return route

    def _views(self) -> list[WorkerView]:
        return [worker.view() for worker in self._workers.values()]

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
            self._listener.lose_worker(worker.where.worker_id)
        if worker.gone:
            self._listener.forget_worker(worker.where.worker_id)

    def check_integrity(self) -> None:
        """Whatever is counted somewhere was admitted and is not over.

        Raises:
            AssertionError: a count or a worker is left with a sequence that is over.
        """
        workers = self._workers.values()
        backlogs = [b for worker in workers for b in (worker.computing, worker.promised)]
        for backlog in (self._queue.waiting, *backlogs):
            backlog.check_integrity()
            if stray := sorted(backlog.request_ids - self._admitted.keys()):
                raise AssertionError(f"sequences are over and still counted: {stray}")
