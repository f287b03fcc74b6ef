"""One round of `benchmarks.layered`: every schedule serves the same requests, side by side.

The engine that is furthest behind on its own time line takes the next step, so that what disturbs
the machine for a while hits all schedules, and at the same point of their work. Prints nothing.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.layering.arms import Arm
from benchmarks.layering.subjects import Subject
from benchmarks.load.stats import distribution
from benchmarks.replay import Arrivals, Replay, Timeline
from twinflow.runtime.engine import Engine


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one schedule made of a round.

    Attributes:
        expert_gb: weights of experts that were read, in 10^9 bytes.
        experts: distinct ones that a layer needed in a step, on average.
        steps: taken.
        ttft_p50: seconds to the first token.
        ttft_p99: likewise.
        tbt_p50: seconds between tokens.
        tbt_p99: likewise.
        e2e_p50: seconds to the last token.
        e2e_p99: likewise.
        wall_s: that steps took by the wall clock; 0 where steps are simulated.
        cpu_s: CPU time of the same.
    """

    expert_gb: float
    experts: float
    steps: float
    ttft_p50: float
    ttft_p99: float
    tbt_p50: float
    tbt_p99: float
    e2e_p50: float
    e2e_p99: float
    wall_s: float
    cpu_s: float


class Runner:
    """One schedule in a round.

    Args:
        subject: what is scheduled.
        arm: the schedule.
        arrivals: of the round.
        kv_tokens: room for KV.

    Attributes:
        replay: how far it is.
    """

    def __init__(self, subject: Subject, arm: Arm, arrivals: Arrivals, kv_tokens: int) -> None:
        timeline = Timeline(subject.clock)
        self._engine: Engine = subject.engine(arm, timeline, kv_tokens)
        self._real = subject.real
        self._wall = self._cpu = 0.0
        self.replay = Replay(self._engine, arrivals, timeline, subject.vocab_size)

    def step(self) -> None:
        """Take a step."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.replay.step()
        if self._real:
            self._wall += time.perf_counter() - wall
            self._cpu += time.process_time() - cpu

    def outcome(self) -> Outcome:
        """What came of it, when all is over."""
        self._engine.check_integrity()
        counters, latencies = self._engine.counters, self.replay.latencies
        layers = counters.experts.values()
        ttft, tbt, e2e = map(distribution, (latencies.ttft, latencies.gaps, latencies.e2e))
        if ttft is None or tbt is None or e2e is None:
            raise ValueError("a round needs requests of two tokens or more")
        return Outcome(
            expert_gb=sum(layer.loaded_bytes for layer in layers) / 1e9,
            experts=sum(layer.distinct for layer in layers)
            / max(sum(layer.steps for layer in layers), 1),
            steps=counters.steps,
            ttft_p50=ttft.p50,
            ttft_p99=ttft.p99,
            tbt_p50=tbt.p50,
            tbt_p99=tbt.p99,
            e2e_p50=e2e.p50,
            e2e_p99=e2e.p99,
            wall_s=self._wall,
            cpu_s=self._cpu,
        )


def one_round(
    subject: Subject, arms: Sequence[Arm], arrivals: Arrivals, kv_tokens: int
) -> dict[str, Outcome]:
    """Serve the arrivals once with each schedule; outcomes by the schedules' names."""
    runners = {arm.name: Runner(subject, arm, arrivals, kv_tokens) for arm in arms}
    pending = list(runners.values())
    while pending:
        behind = min(pending, key=lambda runner: runner.replay.timeline.now)
        behind.step()
        if behind.replay.done:
            pending.remove(behind)
    return {name: runner.outcome() for name, runner in runners.items()}


def full_rate(subject: Subject, arm: Arm, arrivals: Arrivals, kv_tokens: int) -> float:
    """Requests per second of a schedule to which these requests come all at once."""
    at_once = [(0.0, shape) for _, shape in arrivals]
    runner = Runner(subject, arm, at_once, kv_tokens)
    runner.replay.run()
    return len(at_once) / runner.replay.timeline.now
