"""One fault after the other on a running deployment, each under load and each with its history."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinflow.cluster.chaos.checker import Bounds, Case, Kind, Violation, check
from twinflow.cluster.chaos.deployed import Deployed
from twinflow.cluster.chaos.faults import Fault, Target
from twinflow.cluster.chaos.history import History, RequestRecord, Span
from twinflow.cluster.chaos.load import Load, LoadShape, Prompt, asking
from twinflow.cluster.chaos.network import OwnNetwork
from twinflow.cluster.chaos.recovery import Recovery
from twinflow.cluster.chaos.stream import ask
from twinflow.cluster.chaos.strike import Striker
from twinflow.cluster.chaos.watch import Watch
from twinflow.protos.errors import ServerError
from twinflow.workers.fault_points import Point

_POLL_S = 0.05
# Load before a fault, so that there is something to disturb, and after all is well again.
_LEAD_S = 1.0
_TAIL_S = 1.0
_MOMENT_S = 120.0
_RESTORE_S = 90.0
_IDLE_S = 45.0
_GONE_S = 30.0
_RANK = "-rank"
# After these the next fault is done to another deployment.
_BEYOND_REPAIR = frozenset({Kind.NOT_RESTORED, Kind.HELD, Kind.LEFT_BEHIND, Kind.NO_OUTCOME})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How faults are done.

    Attributes:
        given: settings of `twinflow serve`.
        directory: for orders.
        log: what the deployment writes.
        prompts: what is asked.
        shape: how requests come.
        bounds: of times.
    """

    given: Mapping[str, object]
    directory: Path
    log: Path
    prompts: Sequence[Prompt]
    shape: LoadShape
    bounds: Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one fault.

    Attributes:
        seed: that it is of.
        fault: what was done.
        history: what happened.
        violations: what must not have.
    """

    seed: int
    fault: Fault
    history: History
    violations: Sequence[Violation]

    @property
    def num_finished(self) -> int:
        """Requests that ended well."""
        return sum(request.finished for request in self.history.requests)


class Runner:
    """Breaks one deployment again and again; a context manager.

    Args:
        settings: how.
        network: of its own; None if there is none.
        clock: Unix time in seconds.

    Raises:
        ServerError: it does not start, or does not answer as it did before.
    """

    def __init__(
        self,
        settings: RunSettings,
        network: OwnNetwork | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._network = network
        self._clock = clock
        self._deployed: Deployed | None = None
        self.expected: dict[int, list[int]] = {}

    @property
    def deployed(self) -> Deployed:
        """What is broken; started if it does not run."""
        if self._deployed is None:
            self._deployed = Deployed(
                self._settings.given, self._settings.directory, self._settings.log
            )
        return self._deployed

    def __enter__(self) -> "Runner":
        self.deployed.pids()
        return self

    def __exit__(self, *error: object) -> None:
        if self._deployed is not None:
            self._deployed.kill()

    def close(self) -> list[str]:
        """Stop the deployment in good order; returns what was left of it."""
        left = self._deployed.stop() if self._deployed is not None else []
        self._deployed = None
        return left

    def learn(self) -> None:
        """Ask everything once, without faults: that is what must always be answered.

        Raises:
            ServerError: something was not answered.
        """
        for number, prompt in enumerate(self._settings.prompts):
            record = RequestRecord(f"fault-free-{number}", number, self._clock())
            body = asking(prompt, self.deployed.model, record.name)
            patience_s = self._settings.shape.patience_s
            ask(self.deployed.endpoint, body, record, patience_s=patience_s, clock=self._clock)
            if not record.finished:
                raise ServerError(f"without any fault: {record.ends}")
            self.expected[number] = record.tokens

    def run(self, seed: int, fault: Fault) -> Outcome:
        """Do a fault under load; returns when all is well again, or is not in time."""
        if not self.expected:
            self.learn()
        if fault.point is Point.START_UP and has_gaps(self.deployed.pids()):
            self._renew()
        history = self._endure(fault)
        if fault.is_fatal:
            self._renew()
            history.restored = self._clock()
        violations = check(history, Case(fault, self.expected, self._settings.bounds))
        if _BEYOND_REPAIR & {one.kind for one in violations}:
            self._renew()
        return Outcome(seed=seed, fault=fault, history=history, violations=violations)

    def _endure(self, fault: Fault) -> History:
        deployed = self.deployed
        before = deployed.scrape()
        watch = Watch(deployed.endpoint, deployed.open_admin(), self._clock)
        load = Load(
            deployed.endpoint,
            deployed.model,
            self._settings.prompts,
            shape=self._settings.shape,
            seed=fault.seed,
            clock=self._clock,
        )
        history = History(began=self._clock())
        try:
            load.start()
            time.sleep(_LEAD_S)
            self._break_and_wait(fault, watch, history)
            time.sleep(0.0 if fault.is_fatal else _TAIL_S)
        finally:
            history.requests = load.finish()
            watch.stop()
        history.health = watch.health
        since = history.struck or history.began
        lost = [one for one in watch.events if one.kind == "lost" and one.time >= since]
        history.lost = [event.message for event in lost]
        if not fault.is_fatal:
            self._account(history, before.digests_refused if before else 0.0)
        return history

    def _break_and_wait(self, fault: Fault, watch: Watch, history: History) -> None:
        with self.deployed.open_admin() as admin:
            striker = Striker(self.deployed, admin, self._network, self._clock)
            striker.forgive()
            victim = striker.victim(fault)
            strike = striker.strike(fault, victim.worker_id, _MOMENT_S)
        if strike is None:
            return
        history.struck = strike.at
        if fault.is_fatal:
            history.absent = [Span(strike.at)]
            self._await_the_end(history)
            return
        if fault.target is Target.GATEWAY:
            history.absent = [Span(strike.at, strike.undo_at or float("inf"))]
        self._await_recovery(Recovery(watch, fault, strike, victim), history)

    def _await_recovery(self, recovery: Recovery, history: History) -> None:
        end = self._clock() + _RESTORE_S
        while not recovery.over and (now := self._clock()) < end:
            recovery.look(now)
            time.sleep(_POLL_S)
        recovery.undo()
        history.noticed, history.restored = recovery.noticed, recovery.restored
        history.incomplete = recovery.incomplete(end)

    def _await_the_end(self, history: History) -> None:
        """The deployment ends, and nothing of it stays."""
        end = self._clock() + _GONE_S
        while (left := self.deployed.left()) and self._clock() < end:
            time.sleep(_POLL_S)
        history.left = left
        history.noticed = self._clock()

    def _account(self, history: History, refused_before: float) -> None:
        """Wait until nothing is held any more, and count."""
        end = self._clock() + _IDLE_S
        while self._clock() < end:
            found = self.deployed.scrape()
            history.held = found.held() if found else {}
            if found is not None and not history.held:
                history.counters = found.counters
                history.refused_digests = found.digests_refused - refused_before
                return
            time.sleep(_POLL_S)

    def _renew(self) -> None:
        """What is left of a deployment is ended, and another one started."""
        if self._deployed is not None:
            self._deployed.kill()
            self._deployed = None
        self.deployed.pids()


def has_gaps(names: Collection[str]) -> bool:
    """Whether the successor of some worker would have another name than that.

    It takes the lowest number that is free; after a worker has drained, that may be the drained
    one's. A fault at start-up waits for the victim's name.
    """
    numbered = [name.rpartition("-") for name in names if _RANK not in name]
    pools = {pool for pool, _, _ in numbered}
    return any(
        sorted(int(number) for pool, _, number in numbered if pool == one)
        != list(range(sum(pool == one for pool, _, _ in numbered)))
        for one in pools
    )
