"""How large pools shall be: `decide(moment, memory, tempo) -> (memory, decision)`. Pure.

A pool grows as soon as it needs to. It shrinks to the most that it has needed for a while, so that
a lull of less than `calm_s` changes nothing; the while gets longer if a pool has to grow again soon
after that. If pools together want more than there is room for, places go to whoever lacks most, and
a pool may lose some to another one: workers then change roles.

Flapping is bounded for whatever is observed: a pool that has grown shrinks only if, with the growth
that may have to follow, it has turned at most `turns_per_hour` times in any hour. Growth is never
refused for it: whoever may turn only once more stays large.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from twinflow.cluster.autoscale.needs import Learnt, Need, need_of
from twinflow.cluster.autoscale.policy import PoolPolicy, Tempo
from twinflow.cluster.autoscale.signals import Signals
from twinflow.workers.role import Role

HOUR_S = 3600.0
# By how much the pool that lacks most must be better off before another one gives workers up.
_WORTH_A_TRADE = 0.9
# Windows for which a pool keeps what it has got, once all of its turns are used.
_UNREST = 4.0
# Times the usual calm, for a pool that had to grow again soon after it had shrunk.
_MOST_CAUTIOUS = 4.0

Sizes = Mapping[Role, int]


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """What is remembered of a pool.

    Attributes:
        policy: that it was decided by.
        learnt: of its workers.
        needs: times, and workers that were needed then, for as long as they keep it large.
        grew: whether its latest change was growth.
        grew_at: when it grew last.
        shrank_at: when it shrank last.
        caution: times `calm_s` for which what it has needed keeps it large.
        turns: when it changed direction, in the latest hour.
    """

    policy: PoolPolicy
    learnt: Learnt = field(default_factory=Learnt)
    needs: tuple[tuple[float, int], ...] = ()
    grew: bool = False
    grew_at: float = -math.inf
    shrank_at: float = -math.inf
    caution: float = 1.0
    turns: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered from one decision to the next.

    Attributes:
        decided_at: when the latest one was made; None before the first one.
        pools: those that size themselves.
    """

    decided_at: float | None = None
    pools: Mapping[Role, PoolMemory] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moment:
    """What is to be decided.

    Attributes:
        now: in seconds.
        sizes: workers that pools shall have so far.
        policies: of the pools that size themselves.
        signals: what was observed.
    """

    now: float
    sizes: Sizes
    policies: Mapping[Role, PoolPolicy]
    signals: Signals


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided of a pool.

    Attributes:
        before: workers that it was to have.
        after: workers that it shall have.
        why: in words, figures included.
        held_back: what keeps it from the size that it needs; empty for nothing.
    """

    before: int
    after: int
    why: str
    held_back: str = ""


Decision = Mapping[Role, Verdict]


def decide(moment: Moment, memory: Memory, tempo: Tempo) -> tuple[Memory, Decision]:
    """The sizes that pools shall have from now on.

    Returns:
        What to remember, and what was decided; nothing if it is too soon.
    """
    now = moment.now
    if memory.decided_at is not None and now - memory.decided_at < tempo.interval_s:
        return memory, {}
    pools: dict[Role, PoolMemory] = {}
    needs: dict[Role, Need] = {}
    goals: dict[Role, tuple[int, str]] = {}
    for role, policy in moment.policies.items():
        size = moment.sizes.get(role, 0)
        before = memory.pools.get(role)
        if before is None or before.policy != policy:
            # What it has counts as needed: nobody knows better yet.
            before = PoolMemory(policy, needs=((now, size),))
        learnt, needs[role] = need_of(role, moment.policies, moment.signals, before.learnt)
        pools[role] = _remember(replace(before, learnt=learnt), now, needs[role].workers, tempo)
        goals[role] = _goal(pools[role], size, now, tempo)
    goals = _share(moment, goals, needs, pools, tempo)
    decision: dict[Role, Verdict] = {}
    for role, (goal, remark) in goals.items():
        size = moment.sizes.get(role, 0)
        why = f"{needs[role].why}; {remark}" if remark else needs[role].why
        decision[role] = Verdict(size, goal, why, remark)
        pools[role] = _changed(pools[role], goal - size, now, goal, tempo)
    return Memory(now, pools), decision


def _remember(memory: PoolMemory, now: float, need: int, tempo: Tempo) -> PoolMemory:
    """With a further need, and without what is too long ago."""
    calm_s = tempo.calm_s * memory.caution
    needs = tuple(one for one in memory.needs if now - one[0] < calm_s)
    turns = tuple(time for time in memory.turns if now - time < HOUR_S)
    return replace(memory, needs=(*needs, (now, need)), turns=turns)


def _may_give(memory: PoolMemory, now: float, tempo: Tempo) -> bool:
    """Whether other pools may have workers of it.

    What growth has brought shows after a window. The more of its turns a pool has used, the longer
    it keeps what it has got, so that some are left when it really has too much.
    """
    unrest = max(1.0, _UNREST * len(memory.turns) / tempo.turns_per_hour)
    return now - memory.grew_at >= unrest * tempo.window_s and _may_shrink(memory, tempo)


def _goal(memory: PoolMemory, size: int, now: float, tempo: Tempo) -> tuple[int, str]:
    """The size that a pool should have, were it alone; and a remark."""
    policy = memory.policy
    need = memory.needs[-1][1]
    wanted, remark = size, ""
    if need > size:
        wanted = need
    elif need < size:
        wanted = min(size, max(one for _, one in memory.needs))
        if wanted == size:
            remark = "more was needed lately"
    bounded = min(max(wanted, policy.minimum), policy.maximum)
    if bounded < wanted:
        remark = f"max is {policy.maximum}"
    if bounded < size and not _may_shrink(memory, tempo):
        return size, f"it has turned {len(memory.turns)} times within an hour"
    return bounded, remark


def _may_shrink(memory: PoolMemory, tempo: Tempo) -> bool:
    """Whether a pool may turn, and turn once more when it has to grow again."""
    return not memory.grew or len(memory.turns) + 2 <= tempo.turns_per_hour


def _changed(memory: PoolMemory, by: int, now: float, size: int, tempo: Tempo) -> PoolMemory:
    """After a change of its size; one that had to be undone soon makes a pool more cautious.

    As in adaptive spin-down of disks (Douglis, Krishnan and Bershad 1995): what was switched off
    too early is switched off later next time.
    """
    if not by:
        return memory
    grew = by > 0
    turns = (*memory.turns, now) if grew != memory.grew else memory.turns
    if not grew:
        return replace(memory, grew=grew, shrank_at=now, turns=turns)
    caution = memory.caution
    if not memory.grew:
        regretted = now - memory.shrank_at < tempo.calm_s * caution
        caution = _MOST_CAUTIOUS if regretted else max(1.0, caution / 2.0)
    needs = (*memory.needs, (now, size))
    return replace(memory, grew=grew, grew_at=now, caution=caution, turns=turns, needs=needs)


def _share(
    moment: Moment,
    goals: dict[Role, tuple[int, str]],
    needs: Mapping[Role, Need],
    pools: Mapping[Role, PoolMemory],
    tempo: Tempo,
) -> dict[Role, tuple[int, str]]:
    """The sizes that fit: places go one by one to the pool that lacks most."""
    places = moment.signals.places
    sizes = {role: moment.sizes.get(role, 0) for role in goals}
    wanted = {role: goal for role, (goal, _) in goals.items()}
    if places is None or sum(wanted.values()) <= max(places, sum(sizes.values())):
        return goals
    places = max(places, sum(sizes.values()))
    fixed = {role for role, pool in pools.items() if not _may_give(pool, moment.now, tempo)}
    kept = {role: min(sizes[role], wanted[role]) for role in goals}
    least = {
        role: kept[role] if role in fixed else min(pools[role].policy.minimum, wanted[role])
        for role in goals
    }
    traded = _deal(least, wanted, needs, places)
    untraded = _deal(kept, wanted, needs, places)
    better = _worst(traded, needs) <= _WORTH_A_TRADE * _worst(untraded, needs)
    dealt = traded if better else untraded
    remark = f"there is room for {places} workers"
    return {
        role: (dealt[role], goals[role][1] if dealt[role] == wanted[role] else remark)
        for role in goals
    }


def _deal(least: Sizes, most: Sizes, needs: Mapping[Role, Need], places: int) -> dict[Role, int]:
    dealt = dict(least)
    while sum(dealt.values()) < places:
        short = [role for role in dealt if dealt[role] < most[role]]
        if not short:
            break
        neediest = max(short, key=lambda role: needs[role].exact / max(dealt[role], 1))
        dealt[neediest] += 1
    return dealt


def _worst(sizes: Sizes, needs: Mapping[Role, Need]) -> float:
    return max(needs[role].exact / max(size, 1) for role, size in sizes.items())
