"""How many workers a pool needs for the load that it has: `need_of`. Pure.

The load is counted in workers: of a prefill pool, those that compute, and what would get rid of a
queue that is too long; of the others, KV caches and batches in use. Each worker may carry so much
of it that the objective still holds, and that is learnt:

    TTFT  waiting grows without bound as a worker is busy all the time, and how soon depends on the
          lengths of prompts: the bound is lowered while the objective is missed under load, and
          raised slowly while it is met under load.
    room  where caches or batches are full, sequences wait: the bound is lowered while some do, and
          raised slowly while none does although it is nearly reached.
    TPOT  a step takes the longer the more it decodes, nearly in a straight line (weights are read
          in any case, KV once per sequence): the line is fitted to what was seen, and the bound is
          where it meets the objective.
"""

import math
from dataclasses import dataclass, field, replace

from twinflow.cluster.autoscale.policy import PoolPolicy
from twinflow.cluster.autoscale.signals import PoolSignals, Signals
from twinflow.workers.role import Role

# Nobody is planned to be fuller than that: arrivals are not even.
FULLEST = 0.9
_FIRST_BOUND = 0.75
_LOWEST_BOUND = 0.2
_LOWER, _RAISE = 0.95, 1.02
# Of the bound: below this load, latencies say nothing about it.
_TELLING = 0.8
# Of the objective: well met below.
_WELL_MET = 0.7
_MARGIN = 0.95
# So many sequences that wait for room, on average, are not just passing by.
_CROWD = 0.5
# A queue that is too long shall be gone after this.
_CATCH_UP_S = 20.0
# Weight of the past at each observation of a step's time.
_FADING = 0.98
# Loads that differ by less than this part of their mean say nothing about the line's slope.
_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class Line:
    """Times per token against loads of a worker: sums for a straight line, the past fading.

    Attributes:
        weight: of all observations.
        x: weighted mean of loads.
        y: weighted mean of times.
        xx: weighted mean of squared loads.
        xy: weighted mean of products.
    """

    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def seen(self, load: float, seconds: float) -> "Line":
        """With another observation."""
        weight = self.weight * _FADING + 1.0
        part = 1.0 / weight
        return Line(
            weight,
            self.x + part * (load - self.x),
            self.y + part * (seconds - self.y),
            self.xx + part * (load * load - self.xx),
            self.xy + part * (load * seconds - self.xy),
        )

    def load_at(self, seconds: float) -> float:
        """The load at which a token takes so long; infinite if none does.

        If loads were too much alike, they say nothing of another one: then none does, unless they
        took longer than that, of which the line through zero makes least.
        """
        if self.x <= 0.0 or self.y <= 0.0:
            return math.inf
        steepest = self.y / self.x
        spread = self.xx - self.x * self.x
        if spread > (_SPREAD * self.x) ** 2:
            slope = min(max((self.xy - self.x * self.y) / spread, 0.0), steepest)
        else:
            slope = steepest if self.y > seconds else 0.0
        return self.x + (seconds - self.y) / slope if slope > 0.0 else math.inf


@dataclass(frozen=True, slots=True)
class Learnt:
    """What is known of a pool's workers.

    Attributes:
        ttft_bound: load of a worker up to which prompts are computed in time.
        room_bound: load of a worker up to which there is room for those that come.
        line: times per token.
    """

    ttft_bound: float = _FIRST_BOUND
    room_bound: float = _FIRST_BOUND
    line: Line = field(default_factory=Line)


@dataclass(frozen=True, slots=True)
class Need:
    """What a pool needs.

    Attributes:
        load: in workers.
        bound: what one of them may carry.
        why: where that comes from, in words.
    """

    load: float
    bound: float
    why: str

    @property
    def exact(self) -> float:
        """Workers, and a part of one."""
        return self.load / self.bound

    @property
    def workers(self) -> int:
        """Workers that carry the load."""
        return math.ceil(round(self.exact, 9))


def need_of(
    role: Role, policy: PoolPolicy, signals: Signals, learnt: Learnt
) -> tuple[Learnt, Need]:
    """What a pool needs, and what has been learnt meanwhile.

    Args:
        role: of its workers.
        policy: its objectives.
        signals: of the deployment.
        learnt: so far.
    """
    pool = signals.pools.get(role, PoolSignals(serving=0))
    if role == "prefill":
        load, parts = _prompt_load(policy, pool)
    else:
        load, parts = _decode_load(pool)
    each = load / max(pool.serving, 1)
    bound = FULLEST
    if role != "prefill":
        crowded = pool.waiting >= _CROWD
        room_bound = _moved(learnt.room_bound, each, crowded, not crowded)
        learnt = replace(learnt, room_bound=room_bound)
        bound = min(bound, room_bound)
    if policy.ttft_s is not None:
        learnt = _learn_ttft(learnt, each, signals, policy.ttft_s)
        bound = min(bound, learnt.ttft_bound)
        parts.append(_met("TTFT", signals.ttft_s, policy.ttft_s))
    if policy.tpot_s is not None:
        learnt = _learn_tpot(learnt, pool, signals.tpot_s)
        bound = min(bound, max(_LOWEST_BOUND, learnt.line.load_at(_MARGIN * policy.tpot_s)))
        parts.append(_met("TPOT", signals.tpot_s, policy.tpot_s))
    why = f"load {load:.2f} at {bound:.2f} per worker ({', '.join(parts)})"
    return learnt, Need(load, bound, why)


def _prompt_load(policy: PoolPolicy, pool: PoolSignals) -> tuple[float, list[str]]:
    # What each worker gets done within the objective is in time.
    patience_s = (policy.ttft_s or 0.0) * pool.serving
    late_s = max(0.0, pool.queue_s - patience_s)
    parts = [f"{pool.busy:.2f} busy", f"{pool.queue_s:.2f} s of prompts queued"]
    return pool.busy + late_s / _CATCH_UP_S, parts


def _decode_load(pool: PoolSignals) -> tuple[float, list[str]]:
    crowd = 1.0 + pool.waiting / max(pool.running, 1.0)
    held = max(pool.held, min(1.0, pool.waiting))
    return held * crowd, [f"{pool.held:.2f} full", f"{pool.waiting:.1f} without room"]


def _met(name: str, seen: float | None, objective: float) -> str:
    shown = "unknown" if seen is None else f"{seen * 1000:.0f}"
    return f"{name} {shown} of {objective * 1000:.0f} ms"


def _learn_ttft(learnt: Learnt, each: float, signals: Signals, objective: float) -> Learnt:
    if signals.ttft_s is None:
        return learnt
    decode = signals.pools.get("decode")
    # Whoever waits for room to decode waits for what another pool has to give.
    elsewhere = decode is not None and decode.waiting >= _CROWD
    missed = signals.ttft_s > objective and not elsewhere
    met = signals.ttft_s < _WELL_MET * objective
    return replace(learnt, ttft_bound=_moved(learnt.ttft_bound, each, missed, met))


def _moved(bound: float, each: float, missed: bool, met: bool) -> float:
    """A bound after another look at a worker's load, and at whether all was well with it."""
    if each < _TELLING * bound:
        return bound
    if missed:
        return max(_LOWEST_BOUND, bound * _LOWER)
    return min(FULLEST, bound * _RAISE) if met else bound


def _learn_tpot(learnt: Learnt, pool: PoolSignals, seconds: float | None) -> Learnt:
    if seconds is None or not pool.serving or pool.held <= 0.0:
        return learnt
    return replace(learnt, line=learnt.line.seen(pool.held / pool.serving, seconds))
