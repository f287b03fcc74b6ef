"""Links between CUDA devices: NCCL. Tags are ignored, so both ends post in the same order.

The messages of one call form one NCCL group, and so one kernel. They are ordered behind the work of
the calling thread's current stream, at both ends: post receives under the stream that last used the
blocks, send under the stream that filled them.

Torch's own watchdog would take the whole process down when a peer dies. It is kept out of the way
twice: its timeout is far beyond every deadline of ours, and a worker that uses NCCL must be started
with `nccl_environment.NCCL_ENVIRONMENT`, which torch reads when a group is made.
"""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from twinflow.parallel.links.config import LinkConfig
from twinflow.parallel.links.deadline import Deadline
from twinflow.parallel.links.groups.base import LinkGroup, Operation, PointToPoint, Posted

_WATCHDOG_TIMEOUT = timedelta(days=1)
_POLL_S = 0.0002
# Thread blocks that the copies of one link may occupy; the rest of the device belongs to the model.
_MAX_CTAS = 4


class Communicator(PointToPoint, Protocol):
    """What links use of `ProcessGroupNCCL` beyond sending and receiving."""

    def _start_coalescing(self) -> None: ...
    def _end_coalescing(self) -> Operation: ...
    def _is_initialized(self) -> bool: ...
    def eager_connect_single_device(self, device: torch.device, /) -> None: ...
    def abort(self) -> None: ...


class NcclPosted(Posted):
    """One NCCL group of sends or receives."""

    def __init__(self, operation: Operation) -> None:
        self._operation: Operation | None = operation

    def wait(self, deadline: Deadline) -> None:
        while self._operation is not None and not self._operation.is_completed():
            if deadline.expired:
                raise RuntimeError("the device did not finish in time")
            time.sleep(_POLL_S)
        if self._operation is not None:
            # Does not block any more: raises what went wrong, and orders the current stream
            # behind the copies.
            self._operation.wait()
            self._operation = None

    def discard(self) -> None:
        self._operation = None


class NcclGroup(LinkGroup):
    """Two ranks connected by one NCCL communicator."""

    backend = "nccl"
    device_type = "cuda"

    def __init__(self, group: Communicator, peer_rank: int, device: torch.device) -> None:
        self._group: Communicator | None = group
        self._peer_rank = peer_rank
        self._device = device
        self._aborted = False

    @classmethod
    def connect(cls, config: LinkConfig, store: Store, deadline: Deadline) -> "NcclGroup":
        device = torch.device(config.device)
        group = connect_nccl(store, config.rank, 2, device, deadline, max_ctas=_MAX_CTAS)
        return cls(group, config.peer_rank, device)

    def post_sends(self, tensors: Sequence[torch.Tensor], first_tag: int) -> NcclPosted:
        group = self._require_group()
        with torch.cuda.device(self._device):
            group._start_coalescing()
            for tensor in tensors:
                group.send([tensor], self._peer_rank, 0)
            return NcclPosted(group._end_coalescing())

    def post_receives(self, tensors: Sequence[torch.Tensor], first_tag: int) -> NcclPosted:
        group = self._require_group()
        with torch.cuda.device(self._device):
            group._start_coalescing()
            for tensor in tensors:
                group.recv([tensor], self._peer_rank, 0)
            return NcclPosted(group._end_coalescing())

    def abort(self) -> None:
        group = self._group
        if group is None or self._aborted:
            return
        self._aborted = True
        abort_nccl(group, self._device)

    def release(self) -> None:
        self._group = None

    def _require_group(self) -> Communicator:
        if self._group is None or self._aborted:
            raise RuntimeError("the group was aborted")
        return self._group


def connect_nccl(
    store: Store,
    rank: int,
    size: int,
    device: torch.device,
    deadline: Deadline,
    *,
    max_ctas: int | None = None,
) -> Communicator:
    """A communicator of `size` ranks.

    Args:
        store: where the ranks meet.
        rank: of this process.
        size: ranks.
        device: of this rank.
        deadline: for all of them to come.
        max_ctas: most thread blocks that an operation occupies; None leaves NCCL's choice.

    Raises:
        RuntimeError: not connected when the deadline passed, or not connectable at all.
    """
    if not (dist.is_nccl_available() and torch.cuda.is_available()):
        raise RuntimeError("connections over nccl need a CUDA build of torch and a CUDA device")
    options = dist.ProcessGroupNCCL.Options()
    options.config.blocking = 0
    if max_ctas is not None:
        options.config.max_ctas = max_ctas
    options._timeout = _WATCHDOG_TIMEOUT
    group = cast(Communicator, dist.ProcessGroupNCCL(store, rank, size, options))
    with torch.cuda.device(device):
        group.eager_connect_single_device(device)
    while not group._is_initialized():
        if deadline.expired:
            abort_nccl(group, device)
            raise RuntimeError("the communicator was not ready in time")
        time.sleep(_POLL_S)
    return group


def abort_nccl(group: Communicator, device: torch.device) -> None:
    """Make the kernels of a communicator leave; when it returns, they write no more."""
    group.abort()
    # An aborted kernel leaves at its next look at the abort flag.
    torch.cuda.synchronize(device)
