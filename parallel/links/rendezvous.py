"""How the two ranks of a link find each other through a `StoreBackend`.

First they greet each other, which tells a missing or a mismatched peer from a broken connection;
then torch exchanges its addresses through `LinkStore`. Connects nothing itself.

Torch cannot be interrupted while it connects, and an end whose peer has just left would wait for it
until its deadline. So a rendezvous is called off before both ends have met or not at all, and
neither end leaves before both are connected:

    rank 0    hello/0                    awaits met   torch connects   connected/0
    rank 1    hello/1   awaits hello/0   met          torch connects   awaits connected/0
    rank 0    awaits connected/1
    rank 1    connected/1

The store takes `met` or was called off; both ends learn which. The last word is the one that rank 0
waits for, because the store goes with its end of the link.
"""

from datetime import timedelta

from torch.distributed.distributed_c10d import Store

from twinflow.parallel.links.config import LinkConfig
from twinflow.parallel.links.deadline import Deadline
from twinflow.parallel.links.store import MET_KEY, StoreBackend
from twinflow.protos.errors import LinkError

LINK_PROTOCOL = "twinflow-link/1"


def describe(config: LinkConfig) -> str:
    """The link and its peer, for error messages."""
    return f"link {config.link_id} to {config.peer}"


def meet(config: LinkConfig, backend: StoreBackend, deadline: Deadline) -> None:
    """Agree with the peer that both connect now, and the same kind of link.

    Raises:
        LinkError: the peer did not come in time, means another kind of link, or the rendezvous was
            called off.
    """
    hello = f"{LINK_PROTOCOL} {config.backend}".encode()
    backend.set(f"hello/{config.rank}", hello)
    theirs = _hear(config, backend, f"hello/{config.peer_rank}", deadline)
    if theirs != hello:
        raise LinkError(
            f"{describe(config)}: rendezvous failed: we speak {hello.decode()!r}, the peer "
            f"{theirs[:64].decode(errors='replace')!r}"
        )
    if config.rank == 1:
        backend.set(MET_KEY, b"")
    else:
        _hear(config, backend, MET_KEY, deadline)


def confirm(config: LinkConfig, backend: StoreBackend, deadline: Deadline) -> None:
    """Learn that the peer is connected too: from now on either end may close the link.

    Raises:
        LinkError: the peer was not connected in time.
    """
    if config.rank == 0:
        backend.set("connected/0", b"")
        _hear(config, backend, "connected/1", deadline)
    else:
        _hear(config, backend, "connected/0", deadline)
        backend.set("connected/1", b"")


def _hear(config: LinkConfig, backend: StoreBackend, key: str, deadline: Deadline) -> bytes:
    """What the peer says under a key."""
    value = backend.get(key, deadline.remaining())
    if value is None:
        raise LinkError(
            f"{describe(config)}: rendezvous failed: no sign of the peer within "
            f"{config.deadline_s:g} s"
        )
    return value


class LinkStore(Store):
    """Shows a `StoreBackend` to torch, with a deadline on every wait.

    Torch keeps only the C++ half of a store. Whoever makes a process group from a `LinkStore` keeps
    this object as long as the group lives; a collected one fails with "Not implemented".

    Args:
        backend: where the values are.
        describe: names a link and its peer in errors, such as `link 7 to prefill-0 (epoch 2)`.
        timeout_s: longest wait; a longer one asked for by torch is cut to this.
    """

    def __init__(self, backend: StoreBackend, describe: str, timeout_s: float) -> None:
        super().__init__()
        self._backend = backend
        self._describe = describe
        self._timeout_s = timeout_s

    def set(self, key: str, value: str | bytes) -> None:
        self._backend.set(key, _as_bytes(value))

    def get(self, key: str) -> bytes:
        return self._await(key, self._timeout_s)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        limit = self._timeout_s if timeout is None else self._bounded(timeout)
        for key in keys:
            self._await(key, limit)

    def add(self, key: str, value: int) -> int:
        return self._backend.add(key, value)

    def check(self, keys: list[str]) -> bool:
        return self._backend.check(keys)

    def compare_set(
        self, key: str, expected_value: str | bytes, desired_value: str | bytes
    ) -> bytes:
        return self._backend.compare_set(key, _as_bytes(expected_value), _as_bytes(desired_value))

    def delete_key(self, key: str) -> bool:
        return self._backend.delete(key)

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout_s = self._bounded(timeout)

    def has_extended_api(self) -> bool:
        return False

    def clone(self) -> "LinkStore":
        return self

    def _bounded(self, timeout: timedelta) -> float:
        """The asked time, at most ours; torch's zero means no limit."""
        asked = timeout.total_seconds()
        return min(self._timeout_s, asked) if asked > 0 else self._timeout_s

    def _await(self, key: str, timeout_s: float) -> bytes:
        value = self._backend.get(key, timeout_s)
        if value is None:
            raise LinkError(
                f"{self._describe}: no value for rendezvous key {key!r} within {timeout_s:g} s"
            )
        return value


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
