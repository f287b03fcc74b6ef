"""Threads for blocking calls, one each: a thread lives as long as its call.

For calls that take milliseconds or more and of which many may wait at the same time. A pool of
threads keeps as many as were ever needed at once; this keeps none.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class CallThreads(Executor):
    """Runs each call in a thread of its own.

    Whoever submits bounds how many there are.

    Args:
        name: of the threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._live: set[threading.Thread] = set()
        self._closed = False

    @property
    def num_live(self) -> int:
        """Calls that have not ended."""
        with self._lock:
            return len(self._live)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Start a call.

        Raises:
            RuntimeError: after `shutdown`.
        """
        future = Future[T]()

        def call() -> None:
            try:
                if future.set_running_or_notify_cancel():
                    _settle(future, lambda: fn(*args, **kwargs))
            finally:
                with self._lock:
                    self._live.discard(threading.current_thread())

        thread = threading.Thread(target=call, name=self._name, daemon=True)
        with self._lock:
            if self._closed:
                raise RuntimeError(f"no calls are taken any more by {self._name}")
            self._live.add(thread)
        thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; calls have always started, so there is none to cancel."""
        with self._lock:
            self._closed = True
            live = list(self._live)
        if wait:
            for thread in live:
                thread.join()


def _settle(future: "Future[T]", call: Callable[[], T]) -> None:
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the result
        future.set_exception(error)
    else:
        future.set_result(result)
