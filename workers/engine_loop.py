"""Drives an engine on a thread of its own.

The event loop talks to the engine in commands, which run between steps, and hears from it once
per step. The engine is never touched from another thread. What outputs mean to clients is not
known here.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

from twinflow.protos.errors import EngineError, TwinflowError, Unavailable, WorkerLost
from twinflow.runtime.engine import Engine
from twinflow.runtime.lifecycle import EngineOutputs
from twinflow.runtime.snapshot import take_snapshot

Command = Callable[[Engine], None]
T = TypeVar("T")
# Work that cannot run yet, such as a request that finds the KV cache full, waits for a command.
# Asked again this often all the same: a scheduling policy may look at the time.
_BLOCKED_WAIT_S = 0.1


class EngineLoop:
    """Runs an engine until it is stopped or fails for good.

    Args:
        engine: owned by the loop's thread from `start` on.
        publish: called on the event loop with the outputs of each step.
        on_death: called on the event loop if the engine fails for good.
        blocked_wait_s: how often work that cannot run is looked at again.

    Attributes:
        snapshot: the engine's figures after its latest step.
        error: why the engine failed for good, if it did.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        publish: Callable[[EngineOutputs], None],
        on_death: Callable[[EngineError], None],
        blocked_wait_s: float = _BLOCKED_WAIT_S,
    ) -> None:
        self._engine = engine
        self._blocked_wait_s = blocked_wait_s
        self._publish = publish
        self._on_death = on_death
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="twinflow-engine", daemon=True)
        self._events: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._calls: set[asyncio.Future[Any]] = set()
        self.error: EngineError | None = None
        self.snapshot = take_snapshot(engine)

    def start(self) -> None:
        """Start stepping; call from the event loop that shall hear the outputs."""
        self._events = asyncio.get_running_loop()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether commands will still be carried out."""
        return self._thread.is_alive() and not self._stopping and self.error is None

    def post(self, command: Command) -> None:
        """Run a command between two steps; it must not raise. A dead engine runs none.

        A step that only waits for a lane gives way to it.
        """
        if self.error is None:
            self._commands.put(command)
            self._engine.interrupt()

    def fail(self, error: TwinflowError) -> None:
        """End the engine for good between two steps, as if `error` had come from a step."""

        def end(_engine: Engine) -> None:
            raise error

        self.post(end)

    def to_events(self, callback: Callable[..., None], *args: object) -> None:
        """Call something on the event loop, from a command."""
        if self._events is not None:
            self._events.call_soon_threadsafe(callback, *args)

    async def call(self, command: Callable[[Engine], T]) -> T:
        """Run a command between two steps and return its result, or raise its error.

        Raises:
            Unavailable: the engine has stopped.
        """
        if not self.alive:
            raise Unavailable("the engine of this worker has stopped")
        events = asyncio.get_running_loop()
        done: asyncio.Future[T] = events.create_future()
        self._calls.add(done)
        done.add_done_callback(self._calls.discard)

        def run(engine: Engine) -> None:
            try:
                result = command(engine)
            except Exception as error:  # noqa: BLE001 - handed to the caller, whatever it is
                events.call_soon_threadsafe(_set_exception, done, error)
            else:
                events.call_soon_threadsafe(_set_result, done, result)

        self.post(run)
        return await done

    async def stop(self, timeout_s: float) -> None:
        """End the thread after the current step."""
        self._stopping = True
        self._commands.put(None)
        self._engine.interrupt()
        await asyncio.to_thread(self._thread.join, timeout_s)
        if self._thread.is_alive():
            structlog.get_logger().error("engine thread did not stop", timeout_s=timeout_s)

    def _main(self) -> None:
        try:
            while not self._stopping:
                self._run_commands(block=not self._engine.runnable)
                if self._stopping:
                    return
                progressed = self._engine.runnable and self._engine.step()
                self._deliver()
                if self._engine.runnable and not progressed:
                    wait_s = self._engine.idle_seconds(self._blocked_wait_s)
                    self._run_commands(block=True, timeout_s=wait_s)
        except EngineError as error:
            self._die(error)
        except WorkerLost as error:
            self._die(EngineError(error.message))
        except Exception as error:  # noqa: BLE001 - the thread's last words
            structlog.get_logger().exception("engine thread failed")
            self._die(EngineError(f"{type(error).__name__}: {error}"))
        finally:
            self.to_events(self._refuse_calls)
            self._engine.close()

    def _run_commands(self, *, block: bool, timeout_s: float | None = None) -> None:
        """Run all queued commands; with `block`, wait for the first one."""
        try:
            command = self._commands.get(block, timeout_s)
            while command is not None:
                command(self._engine)
                command = self._commands.get_nowait()
        except queue.Empty:
            return

    def _deliver(self) -> None:
        outputs = self._engine.take_outputs()
        self.snapshot = take_snapshot(self._engine)
        if outputs:
            self.to_events(self._publish, outputs)

    def _refuse_calls(self) -> None:
        """Nobody will answer the calls that are still open."""
        for call in list(self._calls):
            _set_exception(call, Unavailable("the engine of this worker has stopped"))

    def _die(self, error: EngineError) -> None:
        self.error = error
        self.to_events(self._on_death, error)


def _set_result(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
