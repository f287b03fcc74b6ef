"""The key-value store through which the two ranks of a link find each other.

`MemoryStore` is the store of one link; the end with rank 0 hosts it and `StoreDirectory` holds all
of a worker. The other end reaches it through a `StoreBackend` of the caller, which carries the
calls over the control channel. This module opens no socket, does not know how the calls travel, and
does not know torch.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from twinflow.parallel.links.config import LinkPeer
from twinflow.protos.errors import LinkError

# Set by the second rank when it has seen the first: from then on both connect, come what may.
MET_KEY = "met"


class StoreBackend(Protocol):
    """What a rendezvous needs. Every call may raise `LinkError` when the store cannot answer."""

    def set(self, key: str, value: bytes) -> None:
        """Store a value, replacing an older one."""
        ...

    def get(self, key: str, timeout_s: float) -> bytes | None:
        """The value of a key as soon as there is one; None if none came in time."""
        ...

    def add(self, key: str, amount: int) -> int:
        """Add to the number stored under a key, 0 if there is none; returns the sum."""
        ...

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        """Replace the value if it is `expected`, or absent and `expected` is empty.

        Returns:
            The value afterwards; `expected` if the key is absent and stays so.
        """
        ...

    def check(self, keys: Sequence[str]) -> bool:
        """Whether every key has a value."""
        ...

    def delete(self, key: str) -> bool:
        """Remove a key; whether there was one."""
        ...


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """What one link may store; a rendezvous needs a handful of keys and a few hundred bytes each.

    Attributes:
        max_keys: most keys at a time.
        max_bytes: most bytes of keys and values together.
    """

    max_keys: int = 64
    max_bytes: int = 256 * 1024


class MemoryStore:
    """The store of one link, in memory. Thread-safe and bounded; closing it wakes every waiter."""

    def __init__(self, link_id: str, limits: StoreLimits | None = None) -> None:
        self._link_id = link_id
        self._limits = limits or StoreLimits()
        self._values: dict[str, bytes] = {}
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def set(self, key: str, value: bytes) -> None:
        with self._changed:
            self._put(key, value)

    def get(self, key: str, timeout_s: float) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or key in self._values, timeout_s)
            self._require_open(key)
            return self._values.get(key)

    def add(self, key: str, amount: int) -> int:
        with self._changed:
            current = self._values.get(key, b"0")
            try:
                total = int(current) + amount
            except ValueError:
                raise LinkError(
                    f"link {self._link_id}: add to key {key!r}, which holds no number"
                ) from None
            self._put(key, str(total).encode())
            return total

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        with self._changed:
            current = self._values.get(key)
            if current == expected or (current is None and not expected):
                self._put(key, desired)
                return desired
            return expected if current is None else current

    def check(self, keys: Sequence[str]) -> bool:
        with self._changed:
            self._require_open(",".join(keys))
            return all(key in self._values for key in keys)

    def delete(self, key: str) -> bool:
        with self._changed:
            self._require_open(key)
            value = self._values.pop(key, None)
            if value is None:
                return False
            self._bytes -= _entry_bytes(key, value)
            return True

    def call_off(self) -> bool:
        """Close the store, unless the two ends have met: then they need it to connect.

        Returns:
            Whether it is closed.
        """
        with self._changed:
            if MET_KEY not in self._values:
                self.close()
            return self._closed

    def close(self) -> None:
        """Drop every value; whoever waits or calls later gets a `LinkError`."""
        with self._changed:
            self._closed = True
            self._values.clear()
            self._bytes = 0
            self._changed.notify_all()

    def check_integrity(self) -> None:
        """Recount what is stored.

        Raises:
            RuntimeError: the count is wrong, or a bound was passed.
        """
        with self._changed:
            counted = sum(_entry_bytes(key, value) for key, value in self._values.items())
            if counted != self._bytes:
                raise RuntimeError(f"store holds {counted} bytes and counts {self._bytes}")
            if counted > self._limits.max_bytes or len(self._values) > self._limits.max_keys:
                raise RuntimeError(f"store holds {len(self._values)} keys, {counted} bytes")

    def _put(self, key: str, value: bytes) -> None:
        self._require_open(key)
        old = self._values.get(key)
        freed = 0 if old is None else _entry_bytes(key, old)
        size = self._bytes - freed + _entry_bytes(key, value)
        keys = len(self._values) + (old is None)
        if keys > self._limits.max_keys or size > self._limits.max_bytes:
            raise LinkError(
                f"link {self._link_id}: the rendezvous store is full "
                f"({self._limits.max_keys} keys, {self._limits.max_bytes} bytes)"
            )
        self._values[key] = value
        self._bytes = size
        self._changed.notify_all()

    def _require_open(self, key: str) -> None:
        if self._closed:
            raise LinkError(f"link {self._link_id}: store closed while {key!r} was asked for")


class StoreDirectory:
    """The stores of the links whose rank 0 is this worker, each seen by its own peer only.

    A store exists from `create` until `drop`, and only the owner of the directory creates: a peer
    that asks too early waits, and one that asks for nothing known leaves no trace.
    """

    def __init__(self, max_links: int = 1024, limits: StoreLimits | None = None) -> None:
        self._max_links = max_links
        self._limits = limits
        self._stores: dict[str, tuple[LinkPeer, MemoryStore]] = {}
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._stores)

    def create(self, link_id: str, peer: LinkPeer) -> MemoryStore:
        """Make the store of a new link to `peer`.

        Raises:
            LinkError: the link has a store already, or there are too many.
        """
        with self._changed:
            if link_id in self._stores:
                raise LinkError(f"link {link_id} to {peer}: the id is in use")
            if len(self._stores) >= self._max_links:
                raise LinkError(f"link {link_id} to {peer}: {self._max_links} links are open")
            store = MemoryStore(link_id, self._limits)
            self._stores[link_id] = (peer, store)
            self._changed.notify_all()
            return store

    def find(self, link_id: str, peer: LinkPeer, timeout_s: float = 0.0) -> MemoryStore:
        """The store of a link for its peer, which may ask before `create` was called.

        Raises:
            LinkError: no such link within the time, or it is a link to somebody else.
        """
        with self._changed:
            self._changed.wait_for(lambda: link_id in self._stores, timeout_s)
            entry = self._stores.get(link_id)
        if entry is None:
            raise LinkError(f"link {link_id} of {peer}: no such link after {timeout_s:g} s")
        owner, store = entry
        if owner != peer:
            raise LinkError(f"link {link_id} is not a link of {peer}")
        return store

    def call_off(self, link_id: str) -> None:
        """Drop a link's store unless its ends have met: whoever opens the link drops it then."""
        with self._changed:
            entry = self._stores.get(link_id)
        if entry is not None and entry[1].call_off():
            self.drop(link_id)

    def drop(self, link_id: str) -> None:
        """Close and forget a link's store; does nothing if there is none."""
        with self._changed:
            entry = self._stores.pop(link_id, None)
        if entry is not None:
            entry[1].close()

    def close(self) -> None:
        """Drop every store."""
        for link_id in tuple(self._stores):
            self.drop(link_id)

    def check_integrity(self) -> None:
        """Check every store and the bound on their number.

        Raises:
            RuntimeError: something does not add up.
        """
        with self._changed:
            stores = [store for _, store in self._stores.values()]
        if len(stores) > self._max_links:
            raise RuntimeError(f"{len(stores)} stores, {self._max_links} allowed")
        for store in stores:
            store.check_integrity()


def _entry_bytes(key: str, value: bytes) -> int:
    return len(key.encode()) + len(value)
