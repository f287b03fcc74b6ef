"""Links kept open between transfers, so that most transfers find one.

A link is leased by one transfer at a time. The receiving worker picks: an idle link to the sender
if there is one, else a new id. The sending worker is told the id and finds the same link, or makes
its end of the new one. Both give a link back only after a transfer that is complete at both ends;
everything else discards it, which keeps the two ends in step.

Links belong to one life of a peer: a newer epoch drops the links of the older ones, and an older
epoch than the newest seen is refused. The pool opens nothing itself and runs no thread.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from twinflow.parallel.links.config import LinkPeer
from twinflow.parallel.links.link import Link
from twinflow.protos.errors import LinkError

# Connects to a peer under a link id; blocks.
OpenLink = Callable[[LinkPeer, str], Link]


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How many links a worker keeps.

    Attributes:
        max_links: most links, leased and idle; each is two sockets and a thread.
        idle_s: seconds after which an idle link may be closed. Give senders more of it than
            receivers: a receiver that picks a link which the sender has closed loses a transfer.
    """

    max_links: int = 64
    idle_s: float = 60.0


@dataclass(frozen=True, slots=True)
class _Idle:
    link: Link
    since: float


class LinkPool:
    """The links of a worker, leased and idle. Thread-safe; blocks only to close links.

    Args:
        open_link: connects to a peer.
        new_id: makes ids for new links, unique between any two workers.
        limits: bounds.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        open_link: OpenLink,
        new_id: Callable[[], str],
        limits: PoolLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_link = open_link
        self._new_id = new_id
        self._limits = limits or PoolLimits()
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: OrderedDict[str, _Idle] = OrderedDict()  # longest idle first
        self._leased: dict[str, LinkLease] = {}
        self._epochs: dict[str, int] = {}
        self._closed = False

    @property
    def num_idle(self) -> int:
        """Links that wait for a transfer."""
        return len(self._idle)

    @property
    def num_leased(self) -> int:
        """Links that transfers use."""
        return len(self._leased)

    def lease(self, peer: LinkPeer, link_id: str | None = None) -> "LinkLease":
        """Reserve a link to a peer for one transfer; it may still have to be connected.

        Args:
            peer: who is at the other end.
            link_id: the link that the peer chose; None to choose one here.

        Raises:
            LinkError: every link is leased, the id means another link, or the epoch is stale.
        """
        surplus: list[Link] = []
        try:
            with self._lock:
                surplus += self._enter_epoch(peer)
                idle = self._take_idle(peer, link_id)
                if idle is None:
                    surplus += self._make_room()
                return self._reserve(peer, idle, link_id)
        finally:
            _close(surplus)

    def evict_idle(self) -> int:
        """Close the links that were idle for too long; returns how many."""
        with self._lock:
            before = self._clock() - self._limits.idle_s
            expired = [link_id for link_id, idle in self._idle.items() if idle.since <= before]
            links = [self._idle.pop(link_id).link for link_id in expired]
        _close(links)
        return len(links)

    def close(self) -> None:
        """Close every link, leased ones too, and refuse further leases. Idempotent."""
        with self._lock:
            self._closed = True
            links = self._take_idle_where(lambda peer: True)
            # A leased link stays until its lease ends.
            for lease in self._leased.values():
                lease._revoked = True
                links += [] if lease._link is None else [lease._link]
        _close(links)

    def check_integrity(self) -> None:
        """Check the bounds and that no link is in two states.

        Raises:
            RuntimeError: something does not add up.
        """
        with self._lock:
            if self._idle.keys() & self._leased.keys():
                raise RuntimeError("a link is both idle and leased")
            if len(self._idle) + len(self._leased) > self._limits.max_links:
                raise RuntimeError("more links than allowed")
            for link_id, idle in self._idle.items():
                stale = idle.link.peer.epoch != self._epochs.get(idle.link.peer.worker_id)
                if stale or idle.link.broken or idle.link.closed:
                    raise RuntimeError(f"link {link_id} is idle and not usable")

    def _enter_epoch(self, peer: LinkPeer) -> list[Link]:
        """Note the epoch of a peer; returns the idle links of its earlier lives."""
        if self._closed:
            raise LinkError(f"link to {peer}: the pool is closed")
        newest = self._epochs.get(peer.worker_id, peer.epoch)
        if peer.epoch < newest:
            raise LinkError(f"link to {peer}: stale epoch, {newest} was seen")
        self._epochs[peer.worker_id] = peer.epoch
        if peer.epoch == newest:
            return []
        return self._take_idle_where(lambda other: other.worker_id == peer.worker_id)

    def _take_idle(self, peer: LinkPeer, link_id: str | None) -> Link | None:
        if link_id is None:
            # The most recently used one, so that surplus links grow old and are evicted.
            matching = (key for key, idle in reversed(self._idle.items()) if idle.link.peer == peer)
            link_id = next(matching, None)
        if link_id is None or link_id not in self._idle:
            return None
        if self._idle[link_id].link.peer != peer:
            raise LinkError(f"link {link_id} is not a link to {peer}")
        return self._idle.pop(link_id).link

    def _make_room(self) -> list[Link]:
        if len(self._idle) + len(self._leased) < self._limits.max_links:
            return []
        if not self._idle:
            raise LinkError(f"all {self._limits.max_links} links are leased")
        return [self._idle.popitem(last=False)[1].link]

    def _reserve(self, peer: LinkPeer, idle: Link | None, link_id: str | None) -> "LinkLease":
        key = idle.link_id if idle is not None else (link_id or self._new_id())
        if key in self._leased:
            raise LinkError(f"link {key} to {peer}: a transfer uses it")
        lease = LinkLease(self, peer, key, idle)
        self._leased[key] = lease
        return lease

    def _take_idle_where(self, matches: Callable[[LinkPeer], bool]) -> list[Link]:
        found = [key for key, idle in self._idle.items() if matches(idle.link.peer)]
        return [self._idle.pop(key).link for key in found]

    def _attach(self, lease: "LinkLease", link: Link) -> None:
        with self._lock:
            revoked = lease._revoked or self._leased.get(lease.link_id) is not lease
            if not revoked:
                lease._link = link
        if revoked:
            link.close()
            raise LinkError(f"link {lease.link_id} to {lease.peer}: given up while it was opened")

    def _end(self, lease: "LinkLease", keep: bool) -> None:
        with self._lock:
            if self._leased.get(lease.link_id) is not lease:
                return
            del self._leased[lease.link_id]
            link = lease._link
            if link is None:
                return
            current = self._epochs.get(lease.peer.worker_id) == lease.peer.epoch
            usable = not (link.broken or link.closed or lease._revoked)
            if keep and current and usable:
                self._idle[lease.link_id] = _Idle(link, self._clock())
                return
        link.close()


class LinkLease:
    """The right of one transfer to one link. Made by `LinkPool.lease`; ended exactly once."""

    def __init__(self, pool: LinkPool, peer: LinkPeer, link_id: str, link: Link | None) -> None:
        self._pool = pool
        self._link = link
        self._revoked = False
        self.peer = peer
        self.link_id = link_id
        self.reused = link is not None

    def connect(self) -> Link:
        """The link; opens it first if it is new, which blocks.

        Raises:
            LinkError: the link could not be opened, or the pool gave it up.
        """
        if self._link is None:
            self._pool._attach(self, self._pool._open_link(self.peer, self.link_id))
        if self._link is None or self._revoked:
            raise LinkError(f"link {self.link_id} to {self.peer}: the pool gave it up")
        return self._link

    def release(self) -> None:
        """Give the link back for the next transfer: this one is complete at both ends.

        A link that is not usable any more is closed. Does nothing once the lease has ended.
        """
        self._pool._end(self, keep=True)

    def discard(self) -> None:
        """Close the link; the transfer did not end well. Does nothing once the lease has ended."""
        self._pool._end(self, keep=False)


def _close(links: Iterable[Link]) -> None:
    for link in links:
        link.close()
