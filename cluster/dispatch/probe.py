"""Readiness that proves itself: a token through every way a request can take.

For each prefill and decode pair a tiny request is sent whose KV must really be handed over; for
each worker that can serve alone, one without a hand-off. Answers are shared by everyone who asks
within a short time. There is no background load: nothing is probed unless somebody asks.
"""

import asyncio
import uuid
from collections.abc import Callable, Mapping
from contextlib import aclosing

from twinflow.cluster.dispatch.submission import build_submission
from twinflow.cluster.dispatch.worker_client import WorkerClient
from twinflow.cluster.gateway.backend import GenerationSpec, ModelInfo, Readiness
from twinflow.cluster.router.snapshot import Route, WorkerView
from twinflow.protos.errors import ServerError, TwinflowError
from twinflow.runtime.sampling_params import SamplingParams

PROBE_TIMEOUT_S = 4.0
_FRESH_S = 1.0
_FIRST_IN_LINE = -(2**31)


class Prober:
    """Answers whether requests would be served.

    Args:
        workers: all workers, by id.
        model: what is served.
        eos_token_ids: of the model.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        workers: Mapping[str, WorkerClient],
        model: ModelInfo,
        eos_token_ids: tuple[int, ...],
        clock: Callable[[], float],
    ) -> None:
        self._workers = workers
        self._model = model
        self._eos = eos_token_ids
        self._clock = clock
        self._lock = asyncio.Lock()
        self._latest: Readiness | None = None
        self._taken_at = 0.0

    async def readiness(self) -> Readiness:
        """The latest answer, or a new one if it is older than a second."""
        async with self._lock:
            if self._latest is None or self._clock() - self._taken_at > _FRESH_S:
                self._latest = await self._probe_all()
                self._taken_at = self._clock()
            return self._latest

    async def _probe_all(self) -> Readiness:
        views = [worker.view() for worker in self._workers.values()]
        down = [worker for worker in self._workers.values() if not worker.up]
        routes = probe_routes(views)
        if not routes:
            reasons = "; ".join(f"{worker.where.worker_id}: {worker.problem}" for worker in down)
            return Readiness(False, f"no worker is available ({reasons or 'none is configured'})")
        problems = await asyncio.gather(*(self._probe(route) for route in routes))
        names = [_name(route) for route in routes]
        pairs = tuple(f"{n}: {p or 'ok'}" for n, p in zip(names, problems, strict=True))
        missing = tuple(f"{worker.where.worker_id}: {worker.problem}" for worker in down)
        failed = [pair for pair, problem in zip(pairs, problems, strict=True) if problem]
        faults = (*failed, *missing)
        return Readiness(not faults, "; ".join(faults), (*pairs, *missing))

    async def _probe(self, route: Route) -> str:
        """Sends one probe; returns what went wrong, or an empty string."""
        spec = GenerationSpec(
            request_id=f"probe-{uuid.uuid4()}",
            prompt_token_ids=(0, 1),
            params=SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, seed=0),
            priority=_FIRST_IN_LINE,
        )
        submission = build_submission(spec, self._eos, route=route, deadline_s=PROBE_TIMEOUT_S)
        submission.probe = True
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                worker = self._workers[route.decode.worker_id]
                num_tokens = 0
                async with aclosing(worker.generate(submission)) as deltas:
                    async for delta in deltas:
                        num_tokens += len(delta.token_ids)
        except TimeoutError:
            return f"no token within {PROBE_TIMEOUT_S:.0f} s"
        except TwinflowError as error:
            return str(error) if isinstance(error, ServerError) else f"{error.code}: {error}"
        return "" if num_tokens == 2 else f"{num_tokens} tokens instead of 2"


def probe_routes(views: list[WorkerView]) -> list[Route]:
    """Every way a request can take through the workers that are up and not draining."""
    able = [view for view in views if view.up and not view.draining]
    prefill = [view for view in able if view.role == "prefill"]
    decode = [view for view in able if view.role == "decode"]
    alone = [view for view in able if view.role == "mixed"]
    pairs = [Route(d, p) for p in prefill for d in decode]
    return [*pairs, *(Route(view) for view in alone)] or [Route(view) for view in able]


def _name(route: Route) -> str:
    if route.prefill is None:
        return route.decode.worker_id
    return f"{route.prefill.worker_id}→{route.decode.worker_id}"
