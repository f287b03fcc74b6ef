"""Totals become averages and quantiles over a window."""

import pytest

from twinflow.cluster.autoscale.observer import Latencies, Observer, WorkerSample
from twinflow.cluster.autoscale.policy import Tempo
from twinflow.cluster.latency_counts import LatencyCounts

TEMPO = Tempo(window_s=10.0, quantile=50.0)
SHORT = Tempo(window_s=1.0, quantile=50.0)


def prefill(busy_s: float, tokens: int, epoch: int = 1, **changes: int) -> WorkerSample:
    return WorkerSample(epoch=epoch, role="prefill", busy_s=busy_s, prompt_tokens=tokens, **changes)


def latencies(*seconds: float) -> Latencies:
    counts = LatencyCounts(0.05)
    for one in seconds:
        counts.add(one)
    return Latencies(0.05, counts.counts.tolist(), counts.counts.tolist())


def test_busy_workers_are_those_of_the_window() -> None:
    observer = Observer(TEMPO)
    for second in range(30):
        # Busy all the time at first, then half of it; a second worker comes with a history.
        busy = second if second < 15 else 15 + (second - 15) / 2
        workers = [prefill(busy, second * 100)]
        if second >= 15:
            workers.append(prefill(1000.0 + (second - 15) / 4, 50_000, epoch=2))
        observer.note(float(second), workers, latencies())
    found = observer.signals(29.0)
    assert found is not None
    assert found.pools["prefill"].busy == pytest.approx(0.75, rel=0.02)
    assert found.pools["prefill"].serving == 2


def test_a_queue_is_as_long_as_its_prompts_take() -> None:
    observer = Observer(TEMPO)
    for second in range(11):
        observer.note(
            float(second), [prefill(second * 0.5, second * 1000, waiting_tokens=4000)], latencies()
        )
    found = observer.signals(10.0)
    assert found is not None
    assert found.pools["prefill"].queue_s == pytest.approx(2.0)


def test_quantiles_are_of_what_came_in_the_window() -> None:
    observer = Observer(SHORT)
    observer.note(0.0, [prefill(0, 0)], latencies(5.0, 5.0, 5.0))
    observer.note(1.0, [prefill(0, 0)], latencies(5.0, 5.0, 5.0, 0.1))
    found = observer.signals(1.0)
    assert found is not None and found.ttft_s is not None
    assert found.ttft_s == pytest.approx(0.1, rel=0.06)
    for second in range(2, 14):
        observer.note(float(second), [prefill(0, 0)], latencies(5.0, 5.0, 5.0, 0.1))
    later = observer.signals(13.0)
    assert later is not None and later.ttft_s is None and later.tpot_s is None


def test_totals_that_begin_again_are_counted_from_zero() -> None:
    observer = Observer(SHORT)
    observer.note(0.0, [prefill(0, 0)], latencies(5.0, 5.0))
    observer.note(1.0, [prefill(0, 0)], latencies(0.2))
    found = observer.signals(1.0)
    assert found is not None
    assert found.tpot_s == pytest.approx(0.2, rel=0.06)


def test_nothing_is_known_of_too_short_a_time_or_too_long_ago() -> None:
    observer = Observer(TEMPO)
    assert observer.signals(0.0) is None
    for second in range(11):
        assert observer.signals(float(second)) is None
        observer.note(float(second), [prefill(0, 0)], latencies())
    assert observer.signals(10.0) is not None
    assert observer.signals(60.0) is None
