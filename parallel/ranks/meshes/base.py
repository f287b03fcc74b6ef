"""What collectives ask of a transport: ranks send something to each other, all in step.

One implementation per torch backend. A mesh adds nothing up and knows no shapes: both ends of a
pair must mean the same number of bytes, which follows from all ranks running the same model.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.distributed.distributed_c10d import Store

from twinflow.parallel.links.deadline import Deadline
from twinflow.parallel.ranks.config import RanksConfig


class ExchangeError(Exception):
    """An exchange did not come about, and the mesh is of no use any more.

    Args:
        peer: rank that did not do its part, None if the backend does not tell.
        reason: what the backend said.
    """

    def __init__(self, peer: int | None, reason: str) -> None:
        super().__init__(peer, reason)
        self.peer = peer
        self.reason = reason


class RankMesh(ABC):
    """Connections of one rank with every other.

    Class attributes:
        backend: torch's name of the backend.
        device_type: type of the devices whose tensors it moves.
    """

    backend: ClassVar[str]
    device_type: ClassVar[str]

    @classmethod
    @abstractmethod
    def connect(cls, config: RanksConfig, store: Store, deadline: Deadline) -> "RankMesh":
        """Meet the other ranks through `store`.

        Raises:
            RuntimeError: not connected when the deadline passed, or not connectable at all.
        """

    @abstractmethod
    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], deadline: Deadline
    ) -> None:
        """Send `sends[r]` to rank r and receive `receives[r]` from it, for every rank r in them.

        Afterwards all tensors belong to the caller again, in the order of the device: a CPU is
        done, a CUDA stream has it queued.

        Args:
            sends: one contiguous tensor for each rank that takes part, but this one.
            receives: likewise.
            deadline: for all of them; an implementation that only queues may leave it to `settle`.

        Raises:
            ExchangeError: a connection broke, or the deadline passed.
        """

    @abstractmethod
    def settle(self, deadline: Deadline) -> None:
        """Wait until everything queued is done.

        Raises:
            ExchangeError: it is not when the deadline passes.
        """

    @abstractmethod
    def abort(self) -> None:
        """Break all connections: waiters wake with an error, here and at the other ranks.

        Idempotent, and safe while another thread exchanges.
        """

    @abstractmethod
    def release(self) -> None:
        """Give up sockets and threads. Allowed only after `abort`, and when nobody exchanges."""
