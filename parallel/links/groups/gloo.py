"""Links between CPUs: gloo over TCP. Moves tensors in place; checks no sizes.

What gloo does, read in `gloo/transport/tcp` (pair.cc, unbound_buffer.cc) and held by tests:

* A message is put on the wire only when the receiver has posted its receive.
* A message that is longer than the posted tensor ABORTS the receiving process; a shorter one is
  accepted. Both ends therefore agree on sizes before anything is posted.
* A broken connection wakes those who wait for messages that have not begun. A message that is half
  across is forgotten: who waits for it sleeps until its timeout.
* The device thread writes into tensors only under the lock of the connection. A wait that runs into
  its timeout closes the connection under that lock before it raises, so that it proves that no byte
  arrives afterwards. Dropping the process group proves nothing of the kind: its sockets live as
  long as any operation, and go on writing. `ProcessGroup.abort` does nothing for gloo.

Two things follow. Every batch of messages is framed by two messages of one byte, and each end waits
for the one that it receives, because that wait always wakes:

    sender     data 0 … data n-1, trailer ─────►  receiver
               ◄────────────────────────── receipt

TCP keeps the order, so the trailer says that all data is here. And `abort` is a receive under a tag
that nobody ever sends, with the shortest timeout there is.

The data port is not authenticated. A stranger's connection is ignored, and closed with the link;
but one that comes while a link is being opened, and knows how gloo's ends name themselves, could
take the peer's place. Bind links to an address that only the workers reach.
"""

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from twinflow.parallel.links.config import LinkConfig
from twinflow.parallel.links.deadline import Deadline
from twinflow.parallel.links.groups.base import (
    MESSAGE_TAGS,
    LinkGroup,
    Operation,
    PointToPoint,
    Posted,
)

# Torch takes tags of 31 bits. A batch is named by the tag of its first message.
_TRAILER_TAGS = MESSAGE_TAGS
_RECEIPT_TAGS = 2 * MESSAGE_TAGS
_FENCE_TAG = 3 * MESSAGE_TAGS

# Gloo counts in milliseconds, and reads a timeout of zero as its default of minutes.
_SHORTEST = timedelta(milliseconds=1)

# An end that waits for the other to connect waits so many times as long as it is told to.
_CONNECT_WAITS = 5


class GlooPosted(Posted):
    """A batch of messages in one direction.

    Args:
        guard: receive of the message that ends the batch; wakes when the connection breaks.
        messages: operations that are done when the guard is.
        acknowledge: posts what is to be sent once everything is done, if anything is.
    """

    def __init__(
        self,
        guard: Operation,
        messages: list[Operation],
        acknowledge: Callable[[], Operation] | None = None,
    ) -> None:
        # Popped from here and never bound to a local variable: the traceback of an error would
        # keep the operation, and with it the sockets.
        self._operations = [*reversed(messages), guard]
        self._acknowledge = acknowledge

    def wait(self, deadline: Deadline) -> None:
        while self._operations:
            self._operations[-1].wait(time_left(deadline))
            self._operations.pop()
        if self._acknowledge is not None:
            self._operations.append(self._acknowledge())
            self._acknowledge = None
            self.wait(deadline)

    def discard(self) -> None:
        self._operations.clear()
        self._acknowledge = None


class GlooGroup(LinkGroup):
    """Two ranks connected by one TCP connection, with one device thread of their own."""

    backend = "gloo"
    device_type = "cpu"

    def __init__(self, group: PointToPoint, peer_rank: int) -> None:
        self._group: PointToPoint | None = group
        self._peer = peer_rank

    @classmethod
    def connect(cls, config: LinkConfig, store: Store, deadline: Deadline) -> "GlooGroup":
        group = connect_gloo(store, config.rank, 2, config.bind_address, deadline)
        return cls(group, config.peer_rank)

    def post_sends(self, tensors: Sequence[torch.Tensor], first_tag: int) -> GlooPosted:
        group = self._require_group()
        receipt = group.recv([_byte()], self._peer, _RECEIPT_TAGS + first_tag)
        messages = [
            group.send([tensor], self._peer, tag) for tag, tensor in enumerate(tensors, first_tag)
        ]
        messages.append(group.send([_byte()], self._peer, _TRAILER_TAGS + first_tag))
        return GlooPosted(receipt, messages)

    def post_receives(self, tensors: Sequence[torch.Tensor], first_tag: int) -> GlooPosted:
        group = self._require_group()
        messages = [
            group.recv([tensor], self._peer, tag) for tag, tensor in enumerate(tensors, first_tag)
        ]
        trailer = group.recv([_byte()], self._peer, _TRAILER_TAGS + first_tag)

        def acknowledge() -> Operation:
            return self._require_group().send([_byte()], self._peer, _RECEIPT_TAGS + first_tag)

        return GlooPosted(trailer, messages, acknowledge)

    def abort(self) -> None:
        if self._group is not None:
            abort_gloo(self._group, self._peer)

    def release(self) -> None:
        self._group = None

    def _require_group(self) -> PointToPoint:
        if self._group is None:
            raise RuntimeError("the group was released")
        return self._group


def connect_gloo(
    store: Store, rank: int, size: int, bind_address: str, deadline: Deadline
) -> PointToPoint:
    """A process group of `size` ranks, each connected with every other.

    Raises:
        RuntimeError: not connected when the deadline passed.
    """
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # not in the stubs
    options._timeout = max(_SHORTEST, time_left(deadline) / _CONNECT_WAITS)
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=bind_address)]
    options._threads = 1  # runs gloo's own collectives, which nobody calls; zero is refused
    return cast(PointToPoint, dist.ProcessGroupGloo(store, rank, size, options))


def abort_gloo(group: PointToPoint, peer_rank: int) -> None:
    """Close all connections of this end of a group; `peer_rank` is any other rank."""
    try:
        group.recv([_byte()], peer_rank, _FENCE_TAG).wait(_SHORTEST)
    except RuntimeError:
        return  # the expected end: gloo raises once the connection is closed, now or earlier
    raise RuntimeError("the peer sent under the tag that no message has")


def time_left(deadline: Deadline) -> timedelta:
    """What is left until a deadline, as gloo takes it."""
    return max(_SHORTEST, timedelta(milliseconds=math.ceil(deadline.remaining() * 1000)))


def _byte() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.uint8)
