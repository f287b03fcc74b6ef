"""Moments for decisions about pools' sizes, and what happens to the sizes over time."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from twinflow.cluster.autoscale.decide import Decision, Memory, Moment, decide
from twinflow.cluster.autoscale.policy import PoolPolicy, Tempo
from twinflow.cluster.autoscale.signals import PoolSignals, Signals
from twinflow.workers.role import Role

PREFILL = PoolPolicy(minimum=1, maximum=8, ttft_s=0.5)
DECODE = PoolPolicy(minimum=1, maximum=8, tpot_s=0.04)
POLICIES: Mapping[Role, PoolPolicy] = {"prefill": PREFILL, "decode": DECODE}


@dataclass
class Pools:
    """Pools whose sizes are what was decided, at once.

    Attributes:
        sizes: workers of each pool.
        policies: of the pools.
        tempo: of decisions.
        memory: of decisions.
        now: in seconds.
        history: times, and sizes from then on.
        latest: what was decided last.
    """

    sizes: dict[Role, int]
    policies: Mapping[Role, PoolPolicy] = field(default_factory=lambda: POLICIES)
    tempo: Tempo = field(default_factory=Tempo)
    memory: Memory = field(default_factory=Memory)
    now: float = 0.0
    history: list[tuple[float, dict[Role, int]]] = field(default_factory=list)
    latest: Decision = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.history.append((self.now, self.sizes))

    def see(self, signals: Signals, seconds: float = 5.0) -> None:
        """Time passes, then this is observed."""
        self.now += seconds
        moment = Moment(self.now, self.sizes, self.policies, signals)
        self.memory, self.latest = decide(moment, self.memory, self.tempo)
        self.sizes = {**self.sizes, **{role: one.after for role, one in self.latest.items()}}
        self.history.append((self.now, self.sizes))

    def live(self, seconds: float, load: Callable[["Pools"], Signals]) -> None:
        """See what a load makes of the sizes, for so long."""
        end = self.now + seconds
        while self.now < end:
            self.see(load(self))

    def turns(self, role: Role) -> list[float]:
        """When the pool changed direction; its first growth counts."""
        found, grew = [], False
        steps = zip(self.history, self.history[1:], strict=False)
        for (_, before), (time, after) in steps:
            if after[role] != before[role]:
                if (after[role] > before[role]) != grew:
                    found.append(time)
                grew = after[role] > before[role]
        return found


def most_in_an_hour(times: Iterable[float]) -> int:
    """Of these times, the most that lie within one hour."""
    ordered = sorted(times)
    return max((sum(t <= u < t + 3600.0 for u in ordered) for t in ordered), default=0)


def signals(
    prompts: float = 0.5, tokens: float = 0.5, *, sizes: Mapping[Role, int], **changes: object
) -> Signals:
    """A load of so many workers' worth of prompts and of caches, spread over pools of these sizes.

    Tokens take the longer the fuller a cache is: 20 ms, and another 20 ms when it is full.
    """
    serving = sizes["prefill"], sizes["decode"]
    full = min(1.0, tokens / serving[1])
    found = Signals(
        pools={
            "prefill": PoolSignals(serving=serving[0], busy=min(prompts, serving[0])),
            "decode": PoolSignals(
                serving=serving[1],
                held=full * serving[1],
                running=round(100 * full * serving[1]),
                waiting=max(0, round(100 * (tokens - serving[1]))),
            ),
        },
        ttft_s=0.1 if prompts < serving[0] else 2.0,
        tpot_s=0.02 + 0.02 * full,
    )
    return replace(found, **changes)  # type: ignore[arg-type]  # by the caller's word
