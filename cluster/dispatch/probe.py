"""Readiness that proves itself: a token through every way a request can take.

For each prefill and decode pair a tiny request is sent whose KV must really be handed over; for
each worker that can serve alone, one without a hand-off. Answers are shared by everyone who asks
within a short time, as long as the workers are the same. There is no background load: nothing is
probed unless somebody asks.
"""

import asyncio
import uuid
from collections.abc import Callable
from contextlib import aclosing

from twinflow.cluster.dispatch.config import DispatchConfig
from twinflow.cluster.dispatch.roster import Roster
from twinflow.cluster.dispatch.submission import build_submission
from twinflow.cluster.gateway.backend import GenerationSpec, Readiness
from twinflow.cluster.router.snapshot import Route, WorkerView
from twinflow.protos.errors import ServerError, TwinflowError
from twinflow.runtime.sampling_params import SamplingParams

_FIRST_IN_LINE = -(2**31)


class Prober:
    """Answers whether requests would be served.

    Args:
        roster: the workers.
        eos_token_ids: of the model.
        config: time limits.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        roster: Roster,
        eos_token_ids: tuple[int, ...],
        config: DispatchConfig,
        clock: Callable[[], float],
    ) -> None:
        self._roster = roster
        self._eos = eos_token_ids
        self._config = config
        self._clock = clock
        self._lock = asyncio.Lock()
        self._latest: Readiness | None = None
        self._taken_at = 0.0
        self._taken_of: object = None

    async def readiness(self) -> Readiness:
        """The latest answer, or a new one if that is no longer fresh or was of other workers."""
        async with self._lock:
            workers = self._roster.standing()
            old = self._clock() - self._taken_at > self._config.probe_fresh_s
            if self._latest is None or old or workers != self._taken_of:
                self._latest = await self._probe_all()
                self._taken_at, self._taken_of = self._clock(), workers
            return self._latest

    async def _probe_all(self) -> Readiness:
        routes = probe_routes(self._roster.views())
        down = [one for one in self._roster.clients.values() if not one.up and not one.leaving]
        missing = (
            *(f"{worker.where.worker_id}: {worker.problem}" for worker in down),
            *self._roster.missing,
        )
        if not routes:
            reasons = "; ".join(missing) or "none is configured"
            return Readiness(False, f"no worker is available ({reasons})")
        problems = await asyncio.gather(*(self._probe(route) for route in routes))
        names = [_name(route) for route in routes]
        pairs = tuple(f"{n}: {p or 'ok'}" for n, p in zip(names, problems, strict=True))
        failed = [pair for pair, problem in zip(pairs, problems, strict=True) if problem]
        faults = (*failed, *missing)
        return Readiness(
            not faults,
            "; ".join(faults),
            (*pairs, *missing),
            degraded=bool(faults) and not all(problems),
        )

    async def _probe(self, route: Route) -> str:
        """Sends one probe; returns what went wrong, or an empty string."""
        spec = GenerationSpec(
            request_id=f"probe-{uuid.uuid4()}",
            prompt_token_ids=(0, 1),
            params=SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, seed=0),
            priority=_FIRST_IN_LINE,
        )
        timeout_s = self._config.probe_timeout_s
        submission = build_submission(spec, self._eos, route=route, deadline_s=timeout_s)
        submission.probe = True
        try:
            async with asyncio.timeout(timeout_s):
                worker = self._roster.clients[route.decode.worker_id]
                num_tokens = 0
                async with aclosing(worker.generate(submission)) as deltas:
                    async for delta in deltas:
                        num_tokens += len(delta.token_ids)
        except TimeoutError:
            return f"no token within {timeout_s:g} s"
        except TwinflowError as error:
            return str(error) if isinstance(error, ServerError) else f"{error.code}: {error}"
        return "" if num_tokens == 2 else f"{num_tokens} tokens instead of 2"


def probe_routes(views: list[WorkerView]) -> list[Route]:
    """Every way a request can take through the workers that are up and not draining.

    These are the ways of `RoutingPolicy`: mixed workers serve alone and compute prompts for decode
    workers; if there are workers of one kind only, each of them serves alone.
    """
    able = [view for view in views if view.up and not view.draining]
    prefill = [view for view in able if view.role in ("prefill", "mixed")]
    decode = [view for view in able if view.role == "decode"]
    alone = [Route(view) for view in able if view.role == "mixed"]
    pairs = [Route(d, p) for p in prefill for d in decode]
    return [*pairs, *alone] or [Route(view) for view in able]


def _name(route: Route) -> str:
    if route.prefill is None:
        return route.decode.worker_id
    return f"{route.prefill.worker_id}→{route.decode.worker_id}"
