"""The routing policy: one decode worker and, if it pays, one prefill worker.

    decode worker    decode and mixed workers; KV room first, then least load
    prefill worker   prefill and mixed workers; least queue and uncached prompt

A mixed worker that is chosen to decode computes the prompt itself, so what it has cached counts in
the first decision too. If a pool is empty the other one stands in for it, because every worker
holds both flows: without prefill workers the decode worker computes the prompt, without decode
workers a prefill worker decodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from twinflow.cluster.router.filters import Available, Filter, HasRole, HasRoom
from twinflow.cluster.router.scorers import (
    DecodeLoad,
    KVShortage,
    QueueAhead,
    Scorer,
    UncachedPrompt,
)
from twinflow.cluster.router.snapshot import Route, RouteRequest, Workers, WorkerView
from twinflow.protos.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Choice:
    """Filters and scorers for one of the two decisions.

    Attributes:
        required: a worker that fails one of these is never chosen.
        preferred: a worker that fails one of these is chosen only if all do.
        scorers: their costs are added up; the smallest sum wins, ties go to the smallest id.
    """

    required: tuple[Filter, ...]
    preferred: tuple[Filter, ...] = ()
    scorers: tuple[Scorer, ...] = ()

    def choose(self, workers: Workers, request: RouteRequest) -> WorkerView | None:
        """The best worker, or None if none passes the required filters."""
        left = [w for w in workers if all(f.keep(w, request) for f in self.required)]
        better = [w for w in left if all(f.keep(w, request) for f in self.preferred)]
        return min(better or left, key=lambda w: self._rank(w, request), default=None)

    def _rank(self, worker: WorkerView, request: RouteRequest) -> tuple[float, str]:
        return (sum(s.cost(worker, request) for s in self.scorers), worker.worker_id)


def _decode_choice(*roles: Filter) -> Choice:
    scorers = (DecodeLoad(), KVShortage(), QueueAhead(), UncachedPrompt())
    return Choice((Available(), *roles), (HasRoom(),), scorers)


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """Both decisions; replace a field to change one.

    Attributes:
        decode: picks the worker that decodes.
        prefill: picks the worker that computes the prompt for it.
        anyone: picks the only worker when no decode worker is left.
    """

    decode: Choice = field(default_factory=lambda: _decode_choice(HasRole("decode", "mixed")))
    prefill: Choice = field(
        default_factory=lambda: Choice(
            (Available(), HasRole("prefill", "mixed")), (), (QueueAhead(), UncachedPrompt())
        )
    )
    anyone: Choice = field(default_factory=_decode_choice)

    def route(self, workers: Sequence[WorkerView], request: RouteRequest) -> Route:
        """Decide.

        Raises:
            Unavailable: no worker is available.
        """
        decode = self.decode.choose(workers, request)
        if decode is None:
            alone = self.anyone.choose(workers, request)
            if alone is None:
                raise Unavailable("no worker is available; try again")
            return Route(alone)
        if decode.role == "mixed":
            return Route(decode)
        return Route(decode, self.prefill.choose(workers, request))
