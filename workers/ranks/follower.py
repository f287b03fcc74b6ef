"""A rank of a worker that is not rank 0: joins, computes what it is told, and watches rank 0.

It has no engine and no requests. What goes wrong, here or at rank 0, ends it: a rank without its
worker is of no use.
"""

import queue
import threading
from collections.abc import Callable, Sequence

import structlog

from twinflow.parallel.links.deadline import Deadline
from twinflow.parallel.ranks.distributed import DistributedRanks
from twinflow.protos.errors import ConfigError, RankLost
from twinflow.runtime.executor import LayersDone
from twinflow.runtime.kv_progress import KVProgress
from twinflow.runtime.model_runner import SequenceRows
from twinflow.runtime.runner import DraftRunner, Runner
from twinflow.runtime.speculative.layer_parallel.plan import LayerPlan
from twinflow.runtime.speculative.layer_parallel.share import DraftShare
from twinflow.workers.ranks.address import connect
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
    StoreReply,
    Welcome,
)
from twinflow.workers.ranks.handshake import HandshakeRefused, enter, expect
from twinflow.workers.ranks.peer import Peer
from twinflow.workers.ranks.store import RemoteStore

_GREETING_S = 10.0


class Follower:
    """Rank 0 as another rank sees it; made by `Follower.join`.

    Args:
        config: of this rank.
        connection: to rank 0, after the welcome.
        num_blocks: KV blocks that every rank allocates.

    Attributes:
        num_blocks: likewise.
    """

    def __init__(self, config: TeamConfig, connection: Connection, num_blocks: int) -> None:
        self._config = config
        self.num_blocks = num_blocks
        self._peer = Peer(connection, 0, config, self._hear, self._lose)
        self._inbox: queue.SimpleQueue[Step | Draft | Stop | RankLost] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[StoreReply | None] = queue.SimpleQueue()
        self._on_order: dict[str, Callable[[bytes], None]] = {}
        self._ranks: DistributedRanks | None = None
        self._failing = threading.Lock()
        self._lost: RankLost | None = None
        self._closed = False

    @classmethod
    def join(cls, config: TeamConfig, layout: str, num_blocks: int) -> "Follower":
        """Report to rank 0, wait for the other ranks, and connect the collectives.

        Args:
            config: of this rank.
            layout: digest of the worker's KV layout, the same on all ranks.
            num_blocks: KV blocks that this rank has memory for.

        Raises:
            ConfigError: rank 0 refuses this rank, and why.
            RankLost: rank 0 or another rank did not come in time, or was lost meanwhile.
        """
        own = Hello(config.worker_id, config.epoch, config.rank, config.size, layout, num_blocks)
        connection, welcome = _report(config, own)
        follower = cls(config, connection, welcome.num_blocks)
        follower._peer.start()
        store = RemoteStore(follower._peer.send, follower._replies, config.silence_s)
        try:
            follower._ranks = DistributedRanks.connect(config.ranks_config(), store)
            follower.check()
        except RankLost as error:
            found = follower.fail(error)
            follower.close()
            raise found from None
        return follower

    @property
    def ranks(self) -> DistributedRanks:
        """The collectives of this rank."""
        if self._ranks is None:
            raise RuntimeError("the ranks are not connected")
        return self._ranks

    def ready(self, fingerprint: str, address: str = "", parts: tuple[str, ...] = ()) -> None:
        """Tell rank 0 that this rank has loaded its share of weights; see `Ready`."""
        self._peer.send(Ready(fingerprint, address, parts))

    def on_order(self, kind: str, callback: Callable[[bytes], None]) -> None:
        """Have someone called with the body of every order of a kind.

        It is called on a thread that must not wait, while steps may run. A kind can be taken only
        once, and before `ready`.
        """
        if kind in self._on_order:
            raise ValueError(f"orders of kind {kind!r} have a listener")
        self._on_order[kind] = callback

    def report(self, kind: str, body: bytes) -> None:
        """Tell rank 0 something about an order; see `Leader.on_report`."""
        self._peer.send(Report(kind, body))

    def next(self) -> Step | Draft | None:
        """The next step, or what is to be loaded for steps; None when nothing more will come.

        Raises:
            RankLost: the worker is lost.
        """
        self.check()
        found = self._inbox.get()
        if isinstance(found, RankLost):
            raise found
        return None if isinstance(found, Stop) else found

    def check(self) -> None:
        """Raise why the worker is lost, if it is."""
        if self._lost is not None:
            raise self._lost

    def fail(self, error: RankLost) -> RankLost:
        """End this rank, and tell rank 0 why; returns what the worker was lost for first."""
        with self._failing:
            first = self._lost is None and not self._closed
            if first:
                self._lost = error
        if first:
            structlog.get_logger().error("this rank ends", reason=error.message)
            self._peer.send(Failed(error.message))
            self._replies.put(None)
            self._inbox.put(error)
            if self._ranks is not None:
                self._ranks.abort(error)
        return self._lost or error

    def close(self) -> None:
        """Give everything back; `next` returns. Idempotent."""
        with self._failing:
            if self._closed:
                return
            self._closed = True
        self._peer.close()
        if self._ranks is not None:
            self._ranks.close()
        self._inbox.put(Stop())

    def _hear(self, rank: int, frame: Frame) -> None:
        match frame:
            case Step() | Draft() | Stop():
                self._inbox.put(frame)
            case StoreReply():
                self._replies.put(frame)
            case Order() if frame.kind in self._on_order:
                self._on_order[frame.kind](frame.body)
            case Order():
                raise ConnectionBroken(f"sent an order of kind {frame.kind!r}, which nobody takes")
            case _:
                raise ConnectionBroken(f"sent {type(frame).__name__.lower()} out of turn")

    def _lose(self, rank: int, reason: str) -> None:
        self.fail(RankLost(f"{self._config.describe(rank)} is lost: it {reason}"))


class FollowerLoop:
    """Computes this rank's share of every step.

    Args:
        runner: of the share.
        follower: where steps come from.
        on_kv: told, from inside a step, about every finished layer range of held sequences, as
            the engine tells its own listener on rank 0.
        load_draft: loads this rank's share of a drafter, if it has one; None where no model drafts.
    """

    def __init__(
        self,
        runner: Runner,
        follower: Follower,
        on_kv: Callable[[KVProgress], None] | None = None,
        load_draft: Callable[[DraftShare], DraftRunner | None] | None = None,
    ) -> None:
        self._runner = runner
        self._load_draft = load_draft
        self._drafter: DraftRunner | None = None
        self._follower = follower
        self._on_kv = on_kv
        self.steps = 0

    def run(self) -> None:
        """Take steps until rank 0 says that there are no more, and leave the worker.

        Raises:
            RankLost: the worker is lost, whoever is to blame.
        """
        try:
            self._run()
        finally:
            self._follower.close()  # rank 0 waits for it

    def _run(self) -> None:
        while (order := self._follower.next()) is not None:
            try:
                if isinstance(order, Draft):
                    self._load(order)
                else:
                    self._take(order)
            except RankLost as error:
                failure = self._follower.fail(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks went on
                structlog.get_logger().exception("a step failed")
                what = f"in step {order.number}" if isinstance(order, Step) else "to load a drafter"
                reason = f"failed {what}: {type(error).__name__}: {error}"
                failure = self._follower.fail(RankLost(reason))
            else:
                continue
            raise failure

    def _load(self, order: Draft) -> None:
        share = DraftShare(order.layout, order.mlp, order.ranks)
        self._drafter = None  # its memory, before the next one takes as much
        if self._load_draft is None:
            raise ValueError(f"a drafter is to be loaded ({share}), and none is configured")
        self._drafter = self._load_draft(share)

    def _take(self, step: Step) -> None:
        self.steps += 1
        if step.number != self.steps:
            raise ValueError(f"step {step.number} came where {self.steps} was expected")
        for sequence in step.forgotten:
            self._runner.forget(sequence)
        rows = step.sequence_rows()
        if step.drafts:
            self._draft(rows, step.groups)
        else:
            self._runner.forward(rows, self._listener(rows), step.layers_per_unit)
        self._follower.ranks.settle()

    def _draft(self, rows: Sequence[SequenceRows], sizes: Sequence[int] | None) -> None:
        if self._drafter is None:
            raise ValueError("a drafter is to compute a step, and none is loaded")
        groups = None if sizes is None else LayerPlan.of_sizes(list(sizes)).groups
        self._drafter.forward(rows, groups=groups)

    def _listener(self, rows: Sequence[SequenceRows]) -> LayersDone | None:
        on_kv = self._on_kv
        held = [(group.held_as, group) for group in rows if group.held_as is not None]
        if on_kv is None or not held:
            return None

        def on_layers(first: int, end: int) -> None:
            for request_id, group in held:
                if not group.crosses(end):
                    continue
                token_end = group.start + len(group.token_ids)
                on_kv(KVProgress(request_id, first, end, group.start, token_end, group.block_ids))

        return on_layers


def _report(config: TeamConfig, own: Hello) -> tuple[Connection, Welcome]:
    """Connect to rank 0, and wait until all ranks have."""
    deadline = Deadline.after(config.meet_s)
    who = config.describe()
    connection = Connection(connect(config.address, deadline), config.silence_s)
    try:
        # Rank 0 greets one after the other; whoever merely listens there gets no more time.
        enter(connection, config.token, Deadline.after(min(config.meet_s, _GREETING_S)))
        connection.send(own)
        return connection, expect(connection, Welcome, deadline)
    except HandshakeRefused as error:
        connection.close()
        raise ConfigError(f"{who} and rank 0 at {config.address}: {error}") from None
    except ConnectionBroken as error:
        connection.close()
        raise RankLost(f"{config.describe(0)} is lost while ranks meet: it {error}") from None
