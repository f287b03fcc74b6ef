"""The rendezvous store of a worker's collectives, carried by the frames between its ranks.

Rank 0 has the store and answers at once; a follower that waits for a value asks again and again.
"""

import queue
import time
from collections.abc import Callable, Sequence

from twinflow.parallel.links.deadline import Deadline
from twinflow.parallel.links.store import MemoryStore
from twinflow.protos.errors import LinkError
from twinflow.workers.ranks.frames import Frame, StoreCall, StoreReply

_ASK_S = 0.01


def answer(store: MemoryStore, call: StoreCall) -> StoreReply:
    """Carry out a follower's call."""
    if not call.keys:
        return StoreReply(error="a store call without a key")
    key = call.keys[0]
    value: bytes | int | None = None
    try:
        match call.operation:
            case "set":
                store.set(key, call.value)
            case "get":
                value = store.get(key, 0.0)
            case "add":
                value = store.add(key, call.amount)
            case "compare_set":
                value = store.compare_set(key, call.expected, call.value)
            case "check":
                value = int(store.check(call.keys))
            case "delete":
                value = int(store.delete(key))
    except LinkError as error:
        return StoreReply(error=error.message)
    return StoreReply(value)


class RemoteStore:
    """The store as a follower sees it; a `StoreBackend`.

    Args:
        send: says something to rank 0.
        replies: what rank 0 answers; None when it will answer no more.
        timeout_s: longest wait for an answer.
    """

    def __init__(
        self,
        send: Callable[[Frame], None],
        replies: "queue.SimpleQueue[StoreReply | None]",
        timeout_s: float,
    ) -> None:
        self._send = send
        self._replies = replies
        self._timeout_s = timeout_s

    def set(self, key: str, value: bytes) -> None:
        """See `StoreBackend`."""
        self._call(StoreCall("set", [key], value))

    def get(self, key: str, timeout_s: float) -> bytes | None:
        """See `StoreBackend`."""
        deadline = Deadline.after(timeout_s)
        while True:
            value = self._call(StoreCall("get", [key]))
            if isinstance(value, bytes) or deadline.expired:
                return value if isinstance(value, bytes) else None
            time.sleep(_ASK_S)

    def add(self, key: str, amount: int) -> int:
        """See `StoreBackend`."""
        return int(self._call(StoreCall("add", [key], amount=amount)) or 0)

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        """See `StoreBackend`."""
        value = self._call(StoreCall("compare_set", [key], desired, expected))
        return value if isinstance(value, bytes) else b""

    def check(self, keys: Sequence[str]) -> bool:
        """See `StoreBackend`."""
        return bool(self._call(StoreCall("check", list(keys))))

    def delete(self, key: str) -> bool:
        """See `StoreBackend`."""
        return bool(self._call(StoreCall("delete", [key])))

    def _call(self, call: StoreCall) -> bytes | int | None:
        self._send(call)
        try:
            reply = self._replies.get(timeout=self._timeout_s)
        except queue.Empty:
            raise LinkError(f"rank 0 did not answer {call.operation} {call.keys}") from None
        if reply is None:
            raise LinkError("rank 0 is lost")
        if reply.error:
            raise LinkError(reply.error)
        return reply.value
