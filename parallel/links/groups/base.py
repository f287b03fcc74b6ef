"""What a link asks of a process group of two ranks: post, wait, abort.

One implementation per torch backend. Posting never blocks; waiting always has a deadline; after
`abort` has returned, nothing writes into a posted receive any more, whatever the peer does.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import ClassVar, Protocol

import torch
from torch.distributed.distributed_c10d import Store

from twinflow.parallel.links.config import LinkConfig
from twinflow.parallel.links.deadline import Deadline

# Messages have tags below this; a group may use those above it for itself.
MESSAGE_TAGS = 2**29

_LONGEST_REASON = 200


class Operation(Protocol):
    """What links use of `torch.distributed.Work`."""

    def wait(self, timeout: timedelta = ...) -> bool: ...
    def is_completed(self) -> bool: ...


class PointToPoint(Protocol):
    """What links use of a backend of torch; the stubs of torch leave these methods out."""

    def send(self, tensors: list[torch.Tensor], rank: int, tag: int, /) -> Operation: ...
    def recv(self, tensors: list[torch.Tensor], rank: int, tag: int, /) -> Operation: ...


class Posted(ABC):
    """Sends or receives that are under way.

    Holds the operations of torch, which keep sockets and threads alive: whoever aborts a group
    discards what was posted on it.
    """

    @abstractmethod
    def wait(self, deadline: Deadline) -> None:
        """Block until everything posted is done at both ends.

        Raises:
            RuntimeError: the connection broke, was aborted, or the deadline passed.
        """

    @abstractmethod
    def discard(self) -> None:
        """Forget the operations. Allowed only after the group was aborted or all are done."""


class LinkGroup(ABC):
    """A connected process group of two ranks.

    Class attributes:
        backend: torch's name of the backend.
        device_type: type of the devices whose tensors it moves.
    """

    backend: ClassVar[str]
    device_type: ClassVar[str]

    @classmethod
    @abstractmethod
    def connect(cls, config: LinkConfig, store: Store, deadline: Deadline) -> "LinkGroup":
        """Meet the other rank through `store`.

        Raises:
            RuntimeError: not connected when the deadline passed, or not connectable at all.
        """

    @abstractmethod
    def post_sends(self, tensors: Sequence[torch.Tensor], first_tag: int) -> Posted:
        """Send each tensor as one message; message i has tag `first_tag + i`.

        Raises:
            RuntimeError: the connection is broken.
        """

    @abstractmethod
    def post_receives(self, tensors: Sequence[torch.Tensor], first_tag: int) -> Posted:
        """Receive one message into each tensor; message i has tag `first_tag + i`.

        Raises:
            RuntimeError: the connection is broken.
        """

    @abstractmethod
    def abort(self) -> None:
        """Break the connection: waiters wake with an error, posted buffers are no longer written.

        Idempotent, and safe while other threads wait.
        """

    @abstractmethod
    def release(self) -> None:
        """Give up sockets and threads. Allowed only after `abort`, and when nobody waits."""


def failure_reason(error: RuntimeError, deadline: Deadline) -> str:
    """What torch said, without source lines and advice; says so if it was the deadline."""
    if deadline.expired:
        return f"not done within {deadline.budget_s:g} s"
    text = str(error)
    if text.startswith("["):
        text = text.partition("] ")[2] or text
    return text.partition(". ")[0].splitlines()[0][:_LONGEST_REASON]
