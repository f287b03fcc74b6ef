"""Turns totals and load reports into signals: averages and quantiles over a window. No clock.

Totals are those since the start of whoever counts; one that is smaller than before has started
again, and counts from zero.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from twinflow.cluster.autoscale.policy import Tempo
from twinflow.cluster.autoscale.signals import PoolSignals, Signals
from twinflow.cluster.latency_counts import percentile_of
from twinflow.workers.role import Role

# Samples are taken no more often.
_SAMPLE_S = 0.9
# What was lately.
_LATELY_S = 10.0
# Older than that, the latest sample says nothing about now.
_STALE_S = 5.0

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSample:
    """A worker at a moment.

    Attributes:
        epoch: which life of which worker.
        role: that it has.
        busy_s: in which it computed, since its start.
        prompt_tokens: that it computed, since its start.
        waiting_tokens: of prompts, that it has not computed yet.
        running: sequences in its batch.
        receiving: sequences that have room, and whose prompts other workers compute.
        waiting: sequences that wait for room.
        full: part of its KV cache or of its batch that is in use, the larger one.
    """

    epoch: int
    role: Role
    busy_s: float = 0.0
    prompt_tokens: int = 0
    waiting_tokens: int = 0
    running: int = 0
    receiving: int = 0
    waiting: int = 0
    full: float = 0.0


@dataclass(frozen=True, slots=True)
class Latencies:
    """Latencies since the gateway's start, in classes.

    Attributes:
        width: of the classes, as a part of the latency.
        ttft: times to first tokens.
        gaps: times per further token.
    """

    width: float
    ttft: Sequence[int] = ()
    gaps: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class _Sample:
    """Everything at a moment; of totals, what came since the sample before."""

    time: float
    seconds: float
    workers: tuple[WorkerSample, ...]
    busy_s: Mapping[Role, float] = field(default_factory=dict)
    prompt_tokens: Mapping[Role, int] = field(default_factory=dict)
    ttft: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    gaps: Counts = field(default_factory=lambda: np.zeros(0, np.int64))


class Observer:
    """Remembers a window of samples.

    Args:
        tempo: how long the window is, and which quantile is wanted.
    """

    def __init__(self, tempo: Tempo) -> None:
        self._tempo = tempo
        self._samples: deque[_Sample] = deque()
        self._workers: dict[int, WorkerSample] = {}
        self._latencies = Latencies(1.0)
        self._token_s: dict[Role, float] = {}

    def note(self, now: float, workers: Iterable[WorkerSample], latencies: Latencies) -> None:
        """Take a sample, unless the latest one is very recent."""
        if self._samples and now - self._samples[-1].time < _SAMPLE_S:
            return
        found = tuple(workers)
        busy: dict[Role, float] = {}
        tokens: dict[Role, int] = {}
        for worker in found:
            before = self._workers.get(worker.epoch)
            # What a worker did before it was first seen is not of this window.
            if before is not None:
                busy[worker.role] = busy.get(worker.role, 0.0) + worker.busy_s - before.busy_s
                tokens.setdefault(worker.role, 0)
                tokens[worker.role] += worker.prompt_tokens - before.prompt_tokens
        first = not self._samples
        self._samples.append(
            _Sample(
                now,
                0.0 if first else now - self._samples[-1].time,
                found,
                busy,
                tokens,
                _since(self._latencies.ttft, () if first else latencies.ttft),
                _since(self._latencies.gaps, () if first else latencies.gaps),
            )
        )
        self._workers = {worker.epoch: worker for worker in found}
        self._latencies = latencies
        while now - self._samples[0].time > self._tempo.window_s:
            self._samples.popleft()
        self._learn_speed()

    def signals(self, now: float, places: int | None = None) -> Signals | None:
        """What is known at this moment; None if that is too old, or of too short a time.

        Args:
            now: as in `note`.
            places: workers that fit.
        """
        if not self._samples or now - self._samples[-1].time > _STALE_S:
            return None
        if self._samples[-1].time - self._samples[0].time < min(_LATELY_S, self._tempo.window_s):
            return None
        roles = {worker.role for worker in self._samples[-1].workers}
        return Signals(
            pools={role: self._pool(role) for role in roles},
            ttft_s=self._quantile([sample.ttft for sample in self._samples]),
            tpot_s=self._quantile([sample.gaps for sample in self._samples]),
            starts_per_s=self._starts_per_s(),
            places=places,
        )

    def _pool(self, role: Role) -> PoolSignals:
        seconds = sum(sample.seconds for sample in self._samples)
        busy = sum(sample.busy_s.get(role, 0.0) for sample in self._samples)
        latest = self._samples[-1]
        lately = [sample for sample in self._samples if latest.time - sample.time <= _LATELY_S]
        queued = _mean(lately, role, lambda worker: worker.waiting_tokens)
        return PoolSignals(
            serving=sum(worker.role == role for worker in latest.workers),
            busy=busy / seconds if seconds else 0.0,
            queue_s=queued * self._token_s.get(role, 0.0),
            held=_mean(self._samples, role, lambda worker: worker.full),
            running=_mean(lately, role, lambda worker: worker.running),
            receiving=_mean(lately, role, lambda worker: worker.receiving),
            waiting=_mean(lately, role, lambda worker: worker.waiting),
            waited=_mean(self._samples, role, lambda worker: worker.waiting),
        )

    def _starts_per_s(self) -> float:
        seconds = sum(sample.seconds for sample in self._samples)
        first_tokens = sum(int(sample.ttft.sum()) for sample in self._samples)
        return first_tokens / seconds if seconds else 0.0

    def _learn_speed(self) -> None:
        """Seconds per token of prompts, from the window if any were computed in it."""
        for role in {role for sample in self._samples for role in sample.prompt_tokens}:
            tokens = sum(sample.prompt_tokens.get(role, 0) for sample in self._samples)
            busy = sum(sample.busy_s.get(role, 0.0) for sample in self._samples)
            if tokens > 0:
                self._token_s[role] = busy / tokens

    def _quantile(self, parts: Sequence[Counts]) -> float | None:
        total = np.zeros(max(len(part) for part in parts), np.int64)
        for part in parts:
            total[: len(part)] += part
        return percentile_of(total, self._latencies.width, self._tempo.quantile)


def _mean(
    samples: Collection[_Sample], role: Role, value: Callable[[WorkerSample], float]
) -> float:
    """Of a pool's workers together, on average."""
    total = sum(value(one) for sample in samples for one in sample.workers if one.role == role)
    return total / len(samples)


def _since(before: Sequence[int], after: Sequence[int]) -> Counts:
    """What was counted between two readings of the same totals."""
    now, then = np.asarray(after, np.int64), np.asarray(before, np.int64)
    if len(then) > len(now) or np.any(then > now[: len(then)]):
        return now
    since = now.copy()
    since[: len(then)] -= then
    return since
