"""When a deployment noticed a fault, and when everything was as wanted again."""

from twinflow.cluster.chaos.faults import Fault
from twinflow.cluster.chaos.history import Span
from twinflow.cluster.chaos.strike import Strike
from twinflow.cluster.chaos.watch import Watch
from twinflow.cluster.client.cluster_view import Cluster, Event, WorkerInfo
from twinflow.workers.fault_points import Point


class Recovery:
    """Follows a watch until all is well.

    Args:
        watch: of the deployment.
        fault: that was done.
        strike: likewise.
        victim: the worker that was hit, as it was before.

    Attributes:
        noticed: when the deployment first treated the victim as lost.
        restored: when everything was as wanted again, and a token had gone through every pair.
    """

    def __init__(self, watch: Watch, fault: Fault, strike: Strike, victim: WorkerInfo) -> None:
        self._watch = watch
        self._fault = fault
        self._strike = strike
        self._victim = victim
        self._whole_since: float | None = None
        self._undone = strike.undo_at is None
        self.noticed: float | None = None
        self.restored: float | None = None

    @property
    def over(self) -> bool:
        """Whether all is well, and nothing is left to be undone."""
        return self._undone and self.restored is not None

    def look(self, now: float) -> None:
        """Undo what is due, and see how far it is."""
        undo_at = self._strike.undo_at
        if not self._undone and undo_at is not None and now >= undo_at:
            self.undo()
        if not self._fault.loses_a_worker:
            if self._undone:
                self._look_for_the_end()
        elif self.noticed is None:
            self.noticed = self._notice()
        else:
            self._look_for_the_end()

    def undo(self) -> None:
        """Undo what can be undone, unless it is."""
        if not self._undone:
            self._undone = True
            self._strike.undo()

    def incomplete(self, end: float) -> list[Span]:
        """When a worker was missing for certain; at most until `end`."""
        if self._strike.broken_from is None:
            return []
        back = self._watch.event("ready", self._victim.worker_id, self._strike.at)
        return [Span(self._strike.broken_from, back.time if back else end)]

    def _notice(self) -> float | None:
        name, at = self._victim.worker_id, self._strike.at
        told = [event.time for kind in ("lost", "ended") if (event := self._find(kind, name))]
        silent = self._watch.silent_since.get((name, self._victim.epoch))
        # At start-up it is another life than the one that was there before.
        if silent is not None and self._fault.point is not Point.START_UP:
            told.append(max(silent, at))
        return min(told, default=None)

    def _find(self, kind: str, name: str) -> Event | None:
        return self._watch.event(kind, name, self._strike.at)

    def _look_for_the_end(self) -> None:
        if self.restored is not None or self._watch.cluster is None:
            return
        asked_at, cluster = self._watch.cluster
        since = max(self._strike.at, self.noticed or 0.0, self._strike_over())
        if asked_at < since or not self._is_whole(cluster):
            self._whole_since = None
        elif self._whole_since is None:
            self._whole_since = asked_at
        if self._whole_since is not None:
            self.restored = self._watch.ready_since(self._whole_since)

    def _strike_over(self) -> float:
        """A victim that comes back cannot do so before it is let."""
        return 0.0 if self._fault.loses_a_worker else self._strike.undo_at or 0.0

    def _is_whole(self, cluster: Cluster) -> bool:
        full = all(pool.serving == pool.size for pool in cluster.pools)
        heard = all(one.phase == "serving" and one.load for one in cluster.workers)
        epochs = {one.epoch for one in cluster.workers}
        replaced = self._victim.epoch not in epochs or not self._fault.loses_a_worker
        return full and heard and replaced and cluster.is_settled_for(cluster.version)
