"""Runs sequences on the workers: route, submit, stream, and again if a worker leaves or is lost.

The gateway knows every token it has delivered, so a sequence that loses its worker goes on
elsewhere behind its last token. Sampling noise depends on seed and position only: the client
cannot tell.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from twinflow.cluster.dispatch.admission import AdmissionLimits, AdmissionQueue
from twinflow.cluster.dispatch.config import DispatchConfig
from twinflow.cluster.dispatch.history import History, Story
from twinflow.cluster.dispatch.probe import Prober
from twinflow.cluster.dispatch.roster import Duty, Roster
from twinflow.cluster.dispatch.submission import build_submission
from twinflow.cluster.dispatch.turnstile import Turnstile
from twinflow.cluster.dispatch.worker_client import WorkerClient
from twinflow.cluster.gateway.backend import GenerationSpec, ModelInfo, Readiness, WorkerInfo
from twinflow.cluster.router.policy import RoutingPolicy
from twinflow.cluster.router.prefix_index import PrefixIndex, PromptNames
from twinflow.cluster.router.snapshot import Route, RouteRequest
from twinflow.protos.errors import DeadlineExceeded, TwinflowError, Unavailable, WorkerLost
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.outputs import TokenDelta

# A sequence that has lost so many workers may be what kills them.
MAX_LOSSES = 2
# Workers that leave or refuse are nobody's fault, but nothing may go on for ever.
MAX_MOVES = 32
_DRAIN_POLL_S = 0.05
_REJOIN_POLL_S = 0.05


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

    def remove_worker(self, worker_id: str) -> None:
        """A worker is no longer one of the deployment's."""
        ...


@dataclass(slots=True)
class _Journey:
    """A sequence on its way through the workers.

    Attributes:
        spec: the sequence.
        deadline: when it has to be over.
        story: what is told of it.
        emitted: tokens delivered so far.
        avoid: lives of workers that it must not be sent to again.
        attempts: submissions so far.
        losses: of them, those whose worker was lost.
    """

    spec: GenerationSpec
    deadline: float
    story: Story
    emitted: list[int] = field(default_factory=list)
    avoid: set[tuple[str, int]] = field(default_factory=set)
    attempts: int = 0
    losses: int = 0


class Dispatcher:
    """The `Backend` over a set of workers.

    Args:
        model: what is served.
        eos_token_ids: end-of-sequence tokens of the model.
        duties: the workers to begin with; `follow` changes them.
        token: the deployment's secret.
        limits: of the admission queue.
        listener: hears every worker's load reports, and which workers are gone.
        config: time limits.
        reference: what workers that come later have to agree with.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        model: ModelInfo,
        eos_token_ids: tuple[int, ...],
        duties: Sequence[Duty],
        token: str,
        *,
        limits: AdmissionLimits,
        listener: WorkerListener,
        config: DispatchConfig | None = None,
        reference: pb.DescribeResponse | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        config = config or DispatchConfig()
        self._model = model
        self._eos = eos_token_ids
        self._clock = clock
        self._policy = RoutingPolicy()
        self._index = PrefixIndex(model.block_size)
        self._queue = AdmissionQueue(limits, clock)
        self._turnstile = Turnstile(config.turnstile)
        self._listener = listener
        self._config = config
        self._duties = duties
        self._roster = Roster(
            token,
            config,
            reference,
            on_stats=listener.observe_worker,
            on_change=self._worker_changed,
            on_removed=self._worker_removed,
        )
        self._history = History(clock)
        self._prober = Prober(self._roster, eos_token_ids, config, clock)
        self._draining = False
        self._admitted: dict[str, PromptNames] = {}

    @property
    def model(self) -> ModelInfo:
        """See `Backend.model`."""
        return self._model

    def workers(self) -> tuple[WorkerInfo, ...]:
        """See `Backend.workers`."""
        return tuple(worker.info() for worker in self._roster.clients.values())

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
        views = self._roster.views()
        return tuple(view.worker_id for view in views if view.up and not view.draining)

    @property
    def roster(self) -> Roster:
        """The workers."""
        return self._roster

    @property
    def history(self) -> History:
        """What became of the latest sequences."""
        return self._history

    def start(self) -> None:
        """Connect to the workers."""
        self._roster.follow(self._duties)

    def follow(self, duties: Sequence[Duty], missing: tuple[str, ...] = ()) -> None:
        """Use these workers from now on, and no others.

        Args:
            duties: what each of them is used for.
            missing: what there should be besides, in words; not ready while there is any.
        """
        self._roster.follow(duties)
        self._roster.missing = missing

    async def close(self) -> None:
        """End all sessions."""
        await self._roster.close()

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
        story = self._history.begin(spec.request_id, len(spec.prompt_token_ids))
        journey = _Journey(spec, self._clock() + spec.deadline_s, story)
        try:
            await self._turnstile.enter(spec, spec.deadline_s)
            while True:
                route = await self._find_route(journey)
                self._history.attempt(story, route)
                try:
                    async with aclosing(self._attempt(journey, route)) as deltas:
                        async for delta in deltas:
                            self._queue.answered(spec)
                            # Paid first: whoever is next is chosen by what everybody has paid.
                            self._turnstile.generated(spec, len(delta.token_ids))
                            self._turnstile.leave(spec)
                            self._history.deliver(story, delta)
                            yield delta
                    return
                except (WorkerLost, Unavailable) as error:
                    self._history.leave(story, str(error))
                    self._go_on(journey, route, error)
        except TwinflowError:
            story.state = "failed"
            raise
        finally:
            self._history.close(story)
            self._turnstile.leave(spec)
            self.release(spec)

    def _go_on(self, journey: _Journey, route: Route, error: WorkerLost | Unavailable) -> None:
        """Prepare for another attempt after `error`, or raise it."""
        if self._draining:
            raise Unavailable("The server is shutting down.") from error
        journey.attempts += 1
        journey.losses += isinstance(error, WorkerLost)
        journey.avoid.add((route.decode.worker_id, route.decode.epoch))
        if journey.losses >= MAX_LOSSES or journey.attempts >= MAX_MOVES:
            raise error
        structlog.get_logger().warning(
            "sequence moves to another worker",
            request=journey.spec.request_id,
            delivered=len(journey.emitted),
            problem=str(error),
        )

    async def _attempt(self, journey: _Journey, route: Route) -> AsyncGenerator[TokenDelta, None]:
        """One submission; notes what it yields as emitted."""
        spec, emitted = journey.spec, journey.emitted
        submission = build_submission(
            spec,
            self._eos,
            route=route,
            attempt=journey.attempts,
            emitted=emitted,
            deadline_s=journey.deadline - self._clock(),
        )
        workers = self._roster.clients
        worker = workers[route.decode.worker_id]
        prompt_worker = workers[(route.prefill or route.decode).worker_id]
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

    async def _find_route(self, journey: _Journey) -> Route:
        """Where a sequence goes; if there is no worker at all, one may come in time.

        Raises:
            DeadlineExceeded: the sequence is late.
            Unavailable: no worker has come.
        """
        patience = self._clock() + self._config.rejoin_s
        while True:
            if self._clock() >= journey.deadline:
                raise DeadlineExceeded("The request's deadline passed before it was served.")
            try:
                return self._route(journey)
            except Unavailable:
                if self._draining or self._clock() >= patience:
                    raise
            await asyncio.sleep(_REJOIN_POLL_S)

    def _route(self, journey: _Journey) -> Route:
        spec, emitted = journey.spec, journey.emitted
        names = self._admitted[spec.request_id].names
        views = self._roster.views()
        request = RouteRequest(
            num_tokens=len(spec.prompt_token_ids) + len(emitted),
            max_new_tokens=(spec.params.max_tokens or 0) - len(emitted),
            prefix_hits=self._index.hits(names),
            excluded=frozenset(
                view.worker_id for view in views if (view.worker_id, view.epoch) in journey.avoid
            ),
        )
        route = self._policy.route(views, request)
        # A decode worker keeps the blocks it is handed, and finds them again as well.
        self._index.record(names, route.decode.worker_id)
        if route.prefill is not None:
            self._index.record(names, route.prefill.worker_id)
        return route

    async def readiness(self) -> Readiness:
        """See `Backend.readiness`."""
        if self._draining:
            return Readiness(False, "the server is shutting down")
        return await self._prober.readiness()

    def alive(self) -> bool:
        """See `Backend.alive`."""
        return all(worker.running for worker in self._roster.clients.values())

    def _worker_changed(self, worker: WorkerClient) -> None:
        self._resize_index()
        if not worker.up:
            self._index.forget(worker.where.worker_id)
            self._listener.lose_worker(worker.where.worker_id)
        if worker.gone:
            self._listener.forget_worker(worker.where.worker_id)

    def _worker_removed(self, worker_id: str) -> None:
        self._index.forget(worker_id)
        self._resize_index()
        self._listener.remove_worker(worker_id)

    def _resize_index(self) -> None:
        """More names than caches have blocks would be wrong guesses."""
        clients = self._roster.clients.values()
        self._index.resize(sum(client.info().num_blocks for client in clients))

    def check_integrity(self) -> None:
        """Whatever is counted somewhere was admitted and is not over.

        Raises:
            AssertionError: a count or a worker is left with a sequence that is over.
        """
        self._turnstile.check_integrity(self._admitted.keys())
        workers = self._roster.clients.values()
        backlogs = [b for worker in workers for b in (worker.computing, worker.promised)]
        for backlog in (self._queue.waiting, *backlogs):
            backlog.check_integrity()
            if stray := sorted(backlog.request_ids - self._admitted.keys()):
                raise AssertionError(f"sequences are over and still counted: {stray}")
