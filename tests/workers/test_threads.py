"""A thread for each call, and none afterwards."""

import threading

import pytest

from twinflow.workers.threads import CallThreads

NAME = "twinflow-test"
DEADLINE_S = 10.0


def _live() -> int:
    return sum(thread.name == NAME for thread in threading.enumerate())


def test_calls_run_side_by_side_and_their_threads_end_with_them() -> None:
    threads, barrier = CallThreads(NAME), threading.Barrier(20)
    futures = [threads.submit(barrier.wait, DEADLINE_S) for _ in range(20)]
    assert sorted(future.result(DEADLINE_S) for future in futures) == list(range(20))
    threads.shutdown()
    assert threads.num_live == _live() == 0


def test_an_error_reaches_whoever_waits() -> None:
    threads = CallThreads(NAME)
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 1, 0).result(DEADLINE_S)
    threads.shutdown()


def test_nothing_is_taken_after_the_end() -> None:
    threads = CallThreads(NAME)
    threads.shutdown()
    with pytest.raises(RuntimeError, match="no calls"):
        threads.submit(print)
    assert _live() == 0
