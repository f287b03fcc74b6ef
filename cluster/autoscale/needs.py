"""How many workers a pool needs for the load that it has: `need_of`. Pure.

The load is counted in workers: of a prefill pool, those that compute, and what would get rid of a
queue that is too long; of the others, KV caches and batches in use. Each worker may carry so much
of it that the objective still holds:

    TTFT  waiting grows with u^(sqrt(2(n+1))-1) / (n(1-u)) as n workers are busy for a part u of
          the time (Sakasegawa's approximation of M/G/n). How long a prompt takes, how uneven
          arrivals are and how far out the quantile lies make a straight line of that, which is
          fitted to what was seen; the bound is where the line meets the objective.
    room  as many sequences come and go as chance wants: of independent ones that hold `k` of a
          worker each, a load varies by about the root of k times itself, and twice that is kept
          free (square-root staffing, Halfin and Whitt 1981).
    TPOT  a step takes the longer the more it decodes, nearly in a straight line (weights are read
          in any case, KV once per sequence): the line is fitted to what was seen, and the bound is
          where it meets the objective.

Room to decode is reserved before a prompt is computed. Where prompts come late for want of prefill
workers, what they reserve meanwhile, and those that wait for it, are prefill's load and not
decode's: more room would only be reserved as well.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from twinflow.cluster.autoscale.policy import PoolPolicy
from twinflow.cluster.autoscale.signals import PoolSignals, Signals
from twinflow.workers.role import Role

# Nobody is planned to be busier than that: arrivals are not even.
FULLEST = 0.9
# While nothing is known of the objective.
_FIRST_BOUND = 0.75
_LOWEST_BOUND = 0.2
# Of the objective: that much is made use of.
_MARGIN = 0.95
# So many sequences that wait for room, on average, are not just passing by.
_CROWD = 0.5
# Standard deviations of a load that are kept free.
_SPARE = 2.0
# A queue that is too long shall be gone after this.
_CATCH_UP_S = 20.0
# Weight of the past at each observation of a latency.
_FADING = 0.98
# Loads that differ by less than this part of their mean say nothing about the line's slope.
_SPREAD = 0.1
# Halvings of an interval in search of a bound.
_HALVINGS = 12


@dataclass(frozen=True, slots=True)
class Line:
    """Latencies against loads of a worker: sums for a straight line, the past fading.

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
        """The load at which the latency is so long; infinite if it is at none.

        If loads were too much alike, they say nothing of another one: then it is at none, unless
        they took longer than that, of which the line through zero makes least.
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
        ttft: times to first tokens, against `strain`.
        tpot: times per token, against loads of a worker.
    """

    ttft: Line = field(default_factory=Line)
    tpot: Line = field(default_factory=Line)


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


def strain(busy: float, workers: int) -> float:
    """How long prompts wait for one of some workers, in times that a worker computes one.

    Args:
        busy: part of the time that each worker computes, below 1.
        workers: at least 1.
    """
    return float(busy ** (math.sqrt(2.0 * (workers + 1)) - 1.0)) / (workers * (1.0 - busy))


def need_of(
    role: Role, policies: Mapping[Role, PoolPolicy], signals: Signals, learnt: Learnt
) -> tuple[Learnt, Need]:
    """What a pool needs, and what has been learnt meanwhile.

    Args:
        role: of its workers; it has a policy.
        policies: objectives of pools.
        signals: of the deployment.
        learnt: so far.
    """
    policy = policies[role]
    pool = signals.pools.get(role, PoolSignals(serving=0))
    late = _late(policies, signals)
    if role == "prefill":
        load, parts = _prompt_load(policy, pool, signals, late)
        bound = FULLEST
    else:
        load, bound, parts = _decode_load(pool, signals, late)
    if policy.ttft_s is not None:
        learnt = _learn_ttft(learnt, load, pool, signals)
        goal_s = _MARGIN * policy.ttft_s
        bound = min(bound, _ttft_bound(learnt.ttft, load, goal_s, policy.maximum))
        parts.append(_met("TTFT", signals.ttft_s, policy.ttft_s))
    if policy.tpot_s is not None:
        learnt = _learn_tpot(learnt, pool, signals.tpot_s)
        bound = min(bound, max(_LOWEST_BOUND, learnt.tpot.load_at(_MARGIN * policy.tpot_s)))
        parts.append(_met("TPOT", signals.tpot_s, policy.tpot_s))
    why = f"load {load:.2f} at {bound:.2f} per worker ({', '.join(parts)})"
    return learnt, Need(load, bound, why)


def _late(policies: Mapping[Role, PoolPolicy], signals: Signals) -> float:
    """Which part of the prompts that decode has room for is there because prefill is late."""
    prefill, policy = signals.pools.get("prefill"), policies.get("prefill")
    if prefill is None or policy is None or policy.ttft_s is None:
        return 0.0
    delay_s = prefill.queue_s / max(prefill.serving, 1)
    return max(0.0, 1.0 - policy.ttft_s / delay_s) if delay_s > 0.0 else 0.0


def _prompt_load(
    policy: PoolPolicy, pool: PoolSignals, signals: Signals, late: float
) -> tuple[float, list[str]]:
    queue_s = pool.queue_s
    decode = signals.pools.get("decode")
    if decode is not None and decode.receiving > 0.0:
        # Behind the prompts that are queued here come those that wait for the room of late ones.
        behind = decode.waiting * decode.late_share(late)
        queue_s *= 1.0 + behind / decode.receiving
    # What each worker gets done within the objective is in time.
    patience_s = (policy.ttft_s or 0.0) * pool.serving
    late_s = max(0.0, queue_s - patience_s)
    parts = [f"{pool.busy:.2f} busy", f"{queue_s:.2f} s of prompts queued"]
    return pool.busy + late_s / _CATCH_UP_S, parts


def _decode_load(
    pool: PoolSignals, signals: Signals, late: float
) -> tuple[float, float, list[str]]:
    """Load, what a worker may carry so that there is room, and both in words."""
    own = 1.0 - pool.late_share(late)
    waiting = pool.waiting * own
    held = max(pool.held * own, min(1.0, waiting))
    there = max((pool.running + pool.receiving) * own, 1.0)
    # Little's law: how long a sequence stays. Those that leave soon make room for others.
    stay_s = there / signals.starts_per_s if signals.starts_per_s > 0.0 else _CATCH_UP_S
    each = held / there
    load = held + each * waiting * min(1.0, stay_s / _CATCH_UP_S)
    spare = _SPARE * math.sqrt(load * each)
    bound = load / (load + spare) if load > 0.0 else 1.0
    return load, bound, [f"{held:.2f} full", f"{waiting:.1f} without room"]


def _met(name: str, seen: float | None, objective: float) -> str:
    shown = "unknown" if seen is None else f"{seen * 1000:.0f}"
    return f"{name} {shown} of {objective * 1000:.0f} ms"


def _learn_ttft(learnt: Learnt, load: float, pool: PoolSignals, signals: Signals) -> Learnt:
    decode = signals.pools.get("decode")
    # Whoever waits for room to decode waits for what another pool has to give.
    elsewhere = decode is not None and decode.waited >= _CROWD
    if signals.ttft_s is None or elsewhere or not 0.0 < load <= FULLEST * pool.serving:
        return learnt  # above that nothing is steady
    seen = strain(load / pool.serving, pool.serving)
    return replace(learnt, ttft=learnt.ttft.seen(seen, signals.ttft_s))


def _ttft_bound(line: Line, load: float, seconds: float, maximum: int) -> float:
    """What each worker may carry, with as many as that takes, if there may be so many."""
    most = line.load_at(seconds)
    if not 0.0 < most < math.inf:
        # Nothing is known, or nothing helps: prompts that are too long alone are late in any case.
        return _FIRST_BOUND
    workers = max(1, math.ceil(load / FULLEST))
    while workers < maximum and strain(load / workers, workers) > most:
        workers += 1
    return _busiest(most, workers)


def _busiest(most: float, workers: int) -> float:
    """The part of the time that workers may be busy, so that the strain is at most `most`."""
    low, high = _LOWEST_BOUND, FULLEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if strain(middle, workers) <= most else (low, middle)
    return low


def _learn_tpot(learnt: Learnt, pool: PoolSignals, seconds: float | None) -> Learnt:
    if seconds is None or not pool.serving or pool.held <= 0.0:
        return learnt
    return replace(learnt, tpot=learnt.tpot.seen(pool.held / pool.serving, seconds))
