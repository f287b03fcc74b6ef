"""Rank 0 of a worker: gathers the other ranks, tells them what to do, and watches them.

What goes wrong anywhere ends the whole worker: `Leader.check` raises from then on, the collectives
break, and `on_lost` hears of it, once. Requests are none of its business: the engine above it dies,
and whoever serves its requests moves them elsewhere.
"""

import threading
from collections.abc import Callable

import structlog

from twinflow.parallel.links.deadline import Deadline
from twinflow.parallel.links.store import MemoryStore
from twinflow.parallel.ranks.distributed import DistributedRanks
from twinflow.protos.errors import ConfigError, RankLost
from twinflow.workers.ranks.config import TeamConfig
from twinflow.workers.ranks.connection import Connection, ConnectionBroken
from twinflow.workers.ranks.frames import (
    Draft,
    Failed,
    Frame,
    Hello,
    Order,
    Ready,
    Report,
    Step,
    Stop,
    StoreCall,
    Welcome,
)
from twinflow.workers.ranks.meeting import gather
from twinflow.workers.ranks.peer import Peer
from twinflow.workers.ranks.store import answer


class Leader:
    """The other ranks as rank 0 sees them; made by `Leader.meet`.

    Args:
        config: of rank 0.
        num_blocks: KV blocks that every rank allocates.

    Attributes:
        num_blocks: likewise.
    """

    def __init__(self, config: TeamConfig, num_blocks: int) -> None:
        self._config = config
        self.num_blocks = num_blocks
        self._peers: list[Peer] = []
        self._store = MemoryStore(f"ranks of {config.worker_id}")
        self._ranks: DistributedRanks | None = None
        self._changed = threading.Condition()
        self._ready: dict[int, Ready] = {}
        self._lost: RankLost | None = None
        self._closed = False
        self._on_lost: Callable[[RankLost], None] = lambda error: None
        self._on_report: dict[str, Callable[[int, bytes], None]] = {}

    @classmethod
    def meet(cls, config: TeamConfig, layout: str, num_blocks: int) -> "Leader":
        """Wait for the other ranks and connect the collectives.

        Args:
            config: of rank 0.
            layout: digest of the worker's KV layout, the same on all ranks.
            num_blocks: KV blocks that rank 0 has memory for.

        Raises:
            ConfigError: the address cannot be had, or a rank means another layout.
            RankLost: a rank did not come in time, or was lost meanwhile.
        """
        own = Hello(config.worker_id, config.epoch, 0, config.size, layout, num_blocks)
        connections, agreed = gather(config, own)
        leader = cls(config, agreed)
        try:
            leader._welcome(connections)
            leader._ranks = DistributedRanks.connect(config.ranks_config(), leader._store)
            leader.check()
        except RankLost as error:
            found = leader.fail(error)
            leader.close()
            raise found from None
        return leader

    @property
    def ranks(self) -> DistributedRanks:
        """The collectives of rank 0."""
        if self._ranks is None:
            raise RuntimeError("the ranks are not connected")
        return self._ranks

    @property
    def size(self) -> int:
        """Ranks of the worker, rank 0 included."""
        return self._config.size

    @property
    def others(self) -> list[Ready]:
        """What ranks 1, 2, ... have said when they were ready."""
        return [self._ready[rank] for rank in sorted(self._ready)]

    def await_ready(self, fingerprint: str) -> None:
        """Wait until every rank has loaded its share of the same weights as rank 0.

        Raises:
            ConfigError: a rank has loaded others.
            RankLost: a rank was lost, or took much longer than rank 0.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._lost or len(self._ready) == len(self._peers),
                self._config.load_s,
            )
        self.check()
        for peer in self._peers:
            found = self._ready.get(peer.rank)
            who = self._config.describe(peer.rank)
            if found is None:
                raise self.fail(RankLost(f"{who} did not load within {self._config.load_s:g} s"))
            if found.fingerprint != fingerprint:
                error = ConfigError(
                    f"{who} has loaded weights {found.fingerprint}, rank 0 {fingerprint}: give all "
                    f"ranks the same model, and the same kernels on all machines"
                )
                self.fail(RankLost(error.message))
                raise error

    def on_lost(self, callback: Callable[[RankLost], None]) -> None:
        """Have someone called, once and on any thread, when a rank is lost or was lost already."""
        with self._changed:
            self._on_lost = callback
            lost = self._lost
        if lost is not None:
            callback(lost)

    def on_report(self, kind: str, callback: Callable[[int, bytes], None]) -> None:
        """Have someone called with the rank and body of every report of a kind.

        It is called on a thread that must not wait. A kind can be taken only once.
        """
        if kind in self._on_report:
            raise ValueError(f"reports of kind {kind!r} have a listener")
        self._on_report[kind] = callback

    def check(self) -> None:
        """Raise why the worker is lost, if it is."""
        if self._lost is not None:
            raise self._lost

    def tell(self, frame: Step | Draft) -> None:
        """Tell every rank to compute a step, or to load what steps need.

        Raises:
            RankLost: one cannot be told.
        """
        self._broadcast(frame)
        self.check()

    def order(self, kind: str, body: bytes) -> None:
        """Tell every rank to do something beside its steps; see `Follower.on_order`."""
        self._broadcast(Order(kind, body))

    def fail(self, error: RankLost) -> RankLost:
        """End the worker, and tell every rank why; returns what it was lost for first."""
        with self._changed:
            first = self._lost is None and not self._closed
            if first:
                self._lost = error
                self._changed.notify_all()
            lost, callback = self._lost or error, self._on_lost
        if first:
            structlog.get_logger().error("a rank is lost", reason=error.message)
            self._store.close()  # wakes this rank if it is still connecting
            if self._ranks is not None:
                self._ranks.abort(error)
            self._broadcast(Failed(error.message))
            callback(error)
        return lost

    def close(self) -> None:
        """Let every rank end in good order, and give everything back. Idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
        deadline = Deadline.after(0.0 if self._lost else self._config.silence_s)
        if self._lost is None:
            self._broadcast(Stop())
        for peer in self._peers:
            # A rank may be behind in the last step, for which it needs the others.
            peer.finish(deadline.remaining())
        if self._ranks is not None:
            self._ranks.close()
        self._store.close()

    def _welcome(self, connections: dict[int, Connection]) -> None:
        for rank, connection in sorted(connections.items()):
            self._peers.append(Peer(connection, rank, self._config, self._hear, self._lose))
        self._broadcast(Welcome(self.num_blocks))  # comes before the first beat
        for peer in self._peers:
            peer.start()

    def _broadcast(self, frame: Frame) -> None:
        for peer in self._peers:
            peer.send(frame)

    def _hear(self, rank: int, frame: Frame) -> None:
        match frame:
            case StoreCall():
                self._peers[rank - 1].send(answer(self._store, frame))
            case Ready():
                with self._changed:
                    self._ready[rank] = frame
                    self._changed.notify_all()
            case Report() if frame.kind in self._on_report:
                self._on_report[frame.kind](rank, frame.body)
            case Report():
                raise ConnectionBroken(f"sent a report of kind {frame.kind!r}, which nobody takes")
            case _:
                raise ConnectionBroken(f"sent {type(frame).__name__.lower()} out of turn")

    def _lose(self, rank: int, reason: str) -> None:
        self.fail(RankLost(f"{self._config.describe(rank)} is lost: it {reason}"))
