"""Ranks on CUDA devices: one NCCL communicator.

An exchange is one NCCL group of sends and receives, and so one kernel. It is queued on the calling
thread's current stream and does not wait: a step is issued as a whole, and `settle` waits at its
end. Until then the deadline of an exchange is nobody's: a rank whose process dies or freezes in the
middle of a step is noticed by whoever watches the processes, who calls `abort`.

NCCL does not tell which rank did not answer.
"""

import time
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from twinflow.parallel.links.deadline import Deadline
from twinflow.parallel.links.groups.base import Operation, failure_reason
from twinflow.parallel.links.groups.nccl import Communicator, abort_nccl, connect_nccl
from twinflow.parallel.ranks.config import RanksConfig
from twinflow.parallel.ranks.meshes.base import ExchangeError, RankMesh

_POLL_S = 0.0001


class NcclMesh(RankMesh):
    """All ranks in one communicator."""

    backend = "nccl"
    device_type = "cuda"

    def __init__(self, group: Communicator, device: torch.device) -> None:
        self._group: Communicator | None = group
        self._device = device
        self._latest: Operation | None = None
        self._aborted = False

    @classmethod
    def connect(cls, config: RanksConfig, store: Store, deadline: Deadline) -> "NcclMesh":
        """See the base class."""
        device = torch.device(config.device)
        group = connect_nccl(store, config.rank, config.size, device, deadline)
        return cls(group, device)

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], deadline: Deadline
    ) -> None:
        """See the base class."""
        try:
            group = self._require_group()
            with torch.cuda.device(self._device):
                group._start_coalescing()
                for peer in sorted(sends.keys() | receives.keys()):
                    if peer in sends:
                        group.send([sends[peer]], peer, 0)
                    if peer in receives:
                        group.recv([receives[peer]], peer, 0)
                self._latest = group._end_coalescing()
                self._latest.wait()  # orders the current stream behind the exchange
        except RuntimeError as error:
            raise self._failure(failure_reason(error, deadline)) from None

    def settle(self, deadline: Deadline) -> None:
        """See the base class."""
        latest, self._latest = self._latest, None
        try:
            while latest is not None and not latest.is_completed():
                if deadline.expired:
                    raise RuntimeError("the device did not finish in time")
                time.sleep(_POLL_S)
            self._require_group()  # an aborted kernel is completed, too
        except RuntimeError as error:
            raise self._failure(failure_reason(error, deadline)) from None

    def abort(self) -> None:
        """See the base class."""
        group = self._group
        if group is not None and not self._aborted:
            self._aborted = True
            abort_nccl(group, self._device)

    def release(self) -> None:
        """See the base class."""
        self._group = self._latest = None

    def _failure(self, reason: str) -> ExchangeError:
        self.abort()
        return ExchangeError(None, reason)

    def _require_group(self) -> Communicator:
        if self._group is None or self._aborted:
            raise RuntimeError("the communicator was aborted")
        return self._group
