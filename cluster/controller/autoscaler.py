"""Pools that size themselves: what is heard becomes signals, `decide` decides, the rest is telling.

It holds what must be remembered and changes nothing itself: the controller makes wishes of the
decisions, and `plan` carries them out like those of operators.
"""

from dataclasses import dataclass

from twinflow.cluster.autoscale.decide import Decision, Memory, Moment, Verdict, decide
from twinflow.cluster.autoscale.observer import Latencies, Observer, WorkerSample
from twinflow.cluster.autoscale.policy import Tempo
from twinflow.cluster.controller.state import UNBOUNDED, ClusterState, Desired
from twinflow.cluster.controller.wire import ROLE_FROM_PB
from twinflow.protos.twinflow.internal.v1 import gateway_pb2
from twinflow.protos.twinflow.v1 import admin_pb2 as pb
from twinflow.workers.role import Role


@dataclass(slots=True)
class _Account:
    """What a pool has decided: its latest verdict, and how often it has changed."""

    verdict: Verdict
    grown: int = 0
    shrunk: int = 0
    told: str = ""


class Autoscaler:
    """Decides sizes of the pools that have a policy.

    Args:
        tempo: how fast pools may change.
    """

    def __init__(self, tempo: Tempo) -> None:
        self._tempo = tempo
        self._observer = Observer(tempo)
        self._memory = Memory()
        self._accounts: dict[Role, _Account] = {}

    def hear(self, state: ClusterState, response: gateway_pb2.SyncResponse) -> None:
        """A gateway has told what it hears of workers, and how fast tokens came."""
        loads = {
            one.epoch: one.load for one in response.contacts if one.up and one.HasField("load")
        }
        samples = [
            _sample(worker.role, worker.epoch, loads[worker.epoch])
            for worker in state.of_phase("serving")
            if worker.epoch in loads
        ]
        told = response.latencies
        self._observer.note(state.now, samples, Latencies(told.width, told.ttft, told.gaps))

    def decide(self, state: ClusterState, desired: Desired) -> Decision:
        """What was decided of pools just now; mostly nothing."""
        if not desired.scaling:
            self._memory, self._accounts = Memory(), {}
            return {}
        signals = self._observer.signals(state.now, _places(state, desired))
        if signals is None:
            return {}
        moment = Moment(state.now, desired.sizes, desired.scaling, signals)
        self._memory, decision = decide(moment, self._memory, self._tempo)
        for role, verdict in decision.items():
            account = self._accounts.setdefault(role, _Account(verdict))
            account.verdict = verdict
            account.grown += verdict.after > verdict.before
            account.shrunk += verdict.after < verdict.before
        return decision

    def news(self, decision: Decision) -> list[str]:
        """What operators should hear of a decision: changes, and what newly holds one back."""
        found = []
        for role, verdict in decision.items():
            account = self._accounts[role]
            if verdict.after != verdict.before:
                found.append(f"{role} pool {verdict.before} → {verdict.after}: {verdict.why}")
            elif verdict.held_back and verdict.held_back != account.told:
                found.append(f"{role} pool stays at {verdict.after}: {verdict.why}")
            account.told = verdict.held_back
        return found

    def describe(self, cluster: pb.Cluster) -> None:
        """Put into a cluster what pools have decided."""
        for pool in cluster.pools:
            account = self._accounts.get(ROLE_FROM_PB[pool.role])
            if account is not None:
                pool.verdict = account.verdict.why
                pool.grown, pool.shrunk = account.grown, account.shrunk


def _sample(role: Role, epoch: int, load: gateway_pb2.Load) -> WorkerSample:
    return WorkerSample(
        epoch=epoch,
        role=role,
        busy_s=load.busy_seconds,
        prompt_tokens=load.prompt_tokens,
        waiting_tokens=load.waiting_tokens,
        running=load.running,
        receiving=load.receiving,
        waiting=load.waiting,
        full=load.full,
    )


def _places(state: ClusterState, desired: Desired) -> int | None:
    """Workers that pools which size themselves may have together."""
    room = min(state.room_for(role) for role in desired.scaling)
    if room >= UNBOUNDED:
        return None
    return room + sum(len(desired.members(state, role)) for role in desired.scaling)
