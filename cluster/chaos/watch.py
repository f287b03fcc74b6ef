"""Looks at a deployment while something is done to it, and writes down what it says."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from twinflow.cluster.chaos.history import HealthAnswer
from twinflow.cluster.chaos.stream import Endpoint, look
from twinflow.cluster.client.admin import Admin
from twinflow.cluster.client.cluster_view import Cluster, Event
from twinflow.protos.errors import TwinflowError

_HEALTH_EVERY_S = 0.5
_CLUSTER_EVERY_S = 0.1
_PATIENCE_S = 15.0
# Unavailable for a moment, a stream of events is asked for again this soon.
_AGAIN_S = 0.2


class Watch:
    """Three threads that ask: how it is, who works, and what happens.

    Args:
        endpoint: of the HTTP door.
        admin: the operator's door; closed by `stop`.
        clock: Unix time in seconds.

    Attributes:
        health: what `/health` and `/ready` answered.
        events: what the controller told.
        silent_since: when the gateway was first seen not to hear of a life of a worker any more.
    """

    def __init__(
        self, endpoint: Endpoint, admin: Admin, clock: Callable[[], float] = time.time
    ) -> None:
        self._endpoint = endpoint
        self._admin = admin
        self._clock = clock
        self._stop = threading.Event()
        self._last_event = admin.cluster().last_event
        self._cluster: tuple[float, Cluster] | None = None
        self._heard: set[tuple[str, int]] = set()
        self.health: list[HealthAnswer] = []
        self.events: list[Event] = []
        self.silent_since: dict[tuple[str, int], float] = {}
        jobs = (self._watch_health, self._watch_cluster, self._watch_events)
        self._threads = [threading.Thread(target=job, daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    @property
    def cluster(self) -> tuple[float, Cluster] | None:
        """Who works, as last told, and when that was asked; None before the first answer."""
        return self._cluster

    def ready_since(self, moment: float) -> float | None:
        """When `/ready` first said yes to a question that was asked after a moment."""
        answers = (one for one in list(self.health) if one.path == "/ready")
        ready = (one for one in answers if one.status == 200 and one.asked_at >= moment)
        return next((one.answered_at for one in ready), None)

    def event(self, kind: str, worker_id: str, after: float) -> Event | None:
        """The first event of a kind about a worker, after a moment."""
        found = (one for one in list(self.events) if one.kind == kind)
        mine = (one for one in found if one.worker_id == worker_id and one.time >= after)
        return next(mine, None)

    def stop(self) -> None:
        """Ask nothing more."""
        self._stop.set()
        health, cluster, events = self._threads
        health.join()
        cluster.join()
        # It waits for the next event, and would for long.
        self._admin.close()
        events.join()

    def _watch_health(self) -> None:
        while not self._stop.wait(_HEALTH_EVERY_S):
            for path in ("/health", "/ready"):
                answer = look(self._endpoint, path, patience_s=_PATIENCE_S, clock=self._clock)
                self.health.append(answer)

    def _watch_cluster(self) -> None:
        while not self._stop.wait(_CLUSTER_EVERY_S):
            asked_at = self._clock()
            with suppress(TwinflowError):
                cluster = self._admin.cluster()
                self._note(cluster)
                self._cluster = (asked_at, cluster)

    def _note(self, cluster: Cluster) -> None:
        told = {(one.worker_id, one.epoch): one for one in cluster.workers}
        hears = {life for life, one in told.items() if one.load and one.phase != "lost"}
        now = self._clock()
        for life in self._heard - hears:
            self.silent_since.setdefault(life, now)
        for life in hears:
            self.silent_since.pop(life, None)
        self._heard |= hears

    def _watch_events(self) -> None:
        while not self._stop.is_set():
            # The end of the connection, which is not asked before it is there, is no error here.
            with suppress(TwinflowError, ValueError):
                for event in self._admin.watch(self._last_event):
                    self._last_event = event.number
                    self.events.append(event)
            self._stop.wait(_AGAIN_S)
