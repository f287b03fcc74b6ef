"""One connection to another rank, under watch from the meeting to the end.

A thread reads what the other end says, and says that this process lives. Both ends do so whatever
else they do: a process that computes for a minute still beats, one that is frozen does not.
"""

import threading
import time
from collections.abc import Callable

from twinflow.workers.ranks.config import TeamConfig
from twinflow.workers.ranks.connection import Connection, ConnectionBroken
from twinflow.workers.ranks.frames import Beat, Failed, Frame


class Peer:
    """Another rank as this one sees it.

    Args:
        connection: both ends of which have proved themselves.
        rank: the other rank.
        config: of this rank.
        on_frame: called on the thread of the peer with every frame but beats; must not wait.
        on_lost: called once, on whatever thread, with half a sentence about the other rank.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        connection: Connection,
        rank: int,
        config: TeamConfig,
        on_frame: Callable[[int, Frame], None],
        on_lost: Callable[[int, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rank = rank
        self._connection = connection
        self._config = config
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._clock = clock
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"rank-{rank}", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def send(self, frame: Frame) -> None:
        """Say something; a rank that cannot be told anything is lost."""
        try:
            self._connection.send(frame)
        except ConnectionBroken as error:
            self._lose(str(error))

    def finish(self, timeout_s: float) -> None:
        """Wait until the other end breaks the connection, at most so long, and `close`."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self.close()

    def close(self) -> None:
        """Break the connection and end the thread; the other rank is not reported as lost."""
        self._ended.set()
        self._connection.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _main(self) -> None:
        try:
            self._watch()
        except ConnectionBroken as error:
            self._lose(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, this rank is watched no more
            self._lose(f"could not be heard: {type(error).__name__}: {error}")

    def _watch(self) -> None:
        silence_s, silent, next_beat = self._config.silence_s, 0.0, self._clock()
        while not self._ended.is_set():
            now = self._clock()
            if now >= next_beat:
                next_beat = now + self._config.beat_s
                self._connection.send_if_idle(Beat())
            # What was waited for counts, not what a clock says: time in which this process did
            # not run, because it was frozen itself, is no sign of the other's death.
            wait_s = min(next_beat - now, silence_s - silent)
            frame = self._connection.receive(max(0.0, wait_s))
            silent = silent + wait_s if frame is None else 0.0
            if silent >= silence_s:
                raise ConnectionBroken(f"said nothing for {silence_s:g} s")
            if isinstance(frame, Failed):
                raise ConnectionBroken(f"failed: {frame.reason}")
            if frame is not None and not isinstance(frame, Beat):
                self._on_frame(self.rank, frame)

    def _lose(self, reason: str) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self._on_lost(self.rank, reason)
