"""Ranks on CPUs: one gloo group, used for nothing but messages between two of its ranks.

Gloo's own collectives would do for the bytes, but not for the errors: they run as rings, so that a
rank hears only of its neighbour, which may be waiting in good health for the one that died. Here
each rank has a message from each, and whose message is missing is lost. It is the faster way as
well for small tensors, since messages are sent by the calling thread and collectives by another.

All connections of a rank close together when one wait runs into its deadline; what links do against
that, a group for each pair, would not help here: a worker without one of its ranks is no worker.
"""

from collections.abc import Mapping

from torch import Tensor
from torch.distributed.distributed_c10d import Store

from twinflow.parallel.links.deadline import Deadline
from twinflow.parallel.links.groups.base import (
    MESSAGE_TAGS,
    Operation,
    PointToPoint,
    failure_reason,
)
from twinflow.parallel.links.groups.gloo import abort_gloo, connect_gloo, time_left
from twinflow.parallel.ranks.config import RanksConfig
from twinflow.parallel.ranks.meshes.base import ExchangeError, RankMesh


class GlooMesh(RankMesh):
    """All ranks connected by TCP, with one device thread in each."""

    backend = "gloo"
    device_type = "cpu"

    def __init__(self, group: PointToPoint, any_peer: int | None) -> None:
        self._group: PointToPoint | None = group
        self._any_peer = any_peer
        self._tag = 0
        self._aborted = False

    @classmethod
    def connect(cls, config: RanksConfig, store: Store, deadline: Deadline) -> "GlooMesh":
        """See the base class."""
        group = connect_gloo(store, config.rank, config.size, config.bind_address, deadline)
        return cls(group, next((r for r in range(config.size) if r != config.rank), None))

    def exchange(
        self, sends: Mapping[int, Tensor], receives: Mapping[int, Tensor], deadline: Deadline
    ) -> None:
        """See the base class."""
        # Messages of one pair arrive in order; the tag only tells exchanges apart, so that ranks
        # that have come apart wait in vain rather than add up what does not belong together.
        self._tag = (self._tag + 1) % MESSAGE_TAGS
        posted: list[tuple[int, Operation]] = []
        peer, reason = -1, ""
        try:
            for peer, tensor in receives.items():
                posted.append((peer, self._require_group().recv([tensor], peer, self._tag)))
            for peer, tensor in sends.items():
                posted.append((peer, self._require_group().send([tensor], peer, self._tag)))
            posted.reverse()
            while posted:
                peer = posted[-1][0]
                posted[-1][1].wait(time_left(deadline))
                posted.pop()
        except RuntimeError as error:
            reason = failure_reason(error, deadline)
        if reason:
            posted.clear()  # operations keep the sockets open, and the error keeps this frame
            self.abort()
            raise ExchangeError(peer, reason)

    def settle(self, deadline: Deadline) -> None:
        """See the base class: exchanges do not return before they are done."""

    def abort(self) -> None:
        """See the base class."""
        group = self._group
        if group is not None and not self._aborted and self._any_peer is not None:
            self._aborted = True
            abort_gloo(group, self._any_peer)

    def release(self) -> None:
        """See the base class."""
        self._group = None

    def _require_group(self) -> PointToPoint:
        if self._group is None:
            raise RuntimeError("the mesh was released")
        return self._group
