"""The collectives of a group of processes, each a rank.

What gloo and NCCL offer as all-reduce is not what models need here. Both cut a tensor into chunks
and add each up in an order of its own, so that an element's sum depends on where in the tensor it
is, and a row's on how many rows there are. Here parts are added by the rule of `RankGroup` and no
other: in the order of the ranks, 16-bit parts in float32 and rounded once. Two ways of moving them
give the same bits, because the additions are the same:

    direct   every rank sends its part to every other, and each adds up all of it.
             One exchange; (T - 1) N bytes sent by a rank.
    sliced   rank r gets slice r of every part, adds it up and sends the sum to every other.
             Two exchanges; 2 (T - 1) / T N bytes.

Two ranks send the same bytes either way, and few bytes cost less than an exchange: those go
directly. `benchmarks/ranks.py` measures both against gloo's all-reduce.

What goes wrong once breaks the group for ever: the worker ends, and its launcher starts another.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from twinflow.parallel.links.deadline import Deadline
from twinflow.parallel.links.groups.base import failure_reason
from twinflow.parallel.links.rendezvous import LinkStore
from twinflow.parallel.links.store import StoreBackend
from twinflow.parallel.ranks.base import RankGroup
from twinflow.parallel.ranks.config import RanksConfig
from twinflow.parallel.ranks.meshes import RANK_MESHES
from twinflow.parallel.ranks.meshes.base import ExchangeError, RankMesh
from twinflow.protos.errors import LinkError, RankLost

SLICED_FROM_BYTES = 1 << 19


class DistributedRanks(RankGroup):
    """A rank of a group of processes; made by `DistributedRanks.connect`.

    Collectives are called by one thread. `abort` may be called by any other at any time.

    Args:
        config: this rank.
        mesh: its connections.
        store: through which they were made; torch itself does not keep it.
        sliced_from_bytes: size of a part from which sums are sliced.
    """

    def __init__(
        self,
        config: RanksConfig,
        mesh: RankMesh,
        store: LinkStore,
        sliced_from_bytes: int = SLICED_FROM_BYTES,
    ) -> None:
        super().__init__(config.rank, config.size)
        self._config = config
        self._mesh = mesh
        self._store: LinkStore | None = store
        self._sliced_from_bytes = sliced_from_bytes
        self._buffer = torch.empty(0, dtype=torch.uint8, device=config.device)
        self._lost: RankLost | None = None
        self._deadline_s = config.deadline_s

    @classmethod
    def connect(
        cls,
        config: RanksConfig,
        store: StoreBackend,
        sliced_from_bytes: int = SLICED_FROM_BYTES,
    ) -> "DistributedRanks":
        """Meet the other ranks through `store`. Blocks; all ranks must call it.

        Raises:
            RankLost: not all ranks came within `config.connect_s`.
        """
        deadline = Deadline.after(config.connect_s)
        bridge = LinkStore(store, config.describe(), config.connect_s)
        try:
            greet(config, store, deadline)
            mesh = RANK_MESHES[config.backend].connect(config, bridge, deadline)
        except LinkError as error:  # of the store
            reason = error.message
        except RuntimeError as error:
            reason = failure_reason(error, deadline)
        else:
            return cls(config, mesh, bridge, sliced_from_bytes)
        raise RankLost(f"{config.describe()} did not connect with the others: {reason}")

    def all_reduce(self, part: Tensor) -> Tensor:
        """See the base class. The result may be `part` itself."""
        return self.reduce_among(part, range(self.size))

    def all_gather(self, part: Tensor) -> Tensor:
        """See the base class."""
        return self.gather_among(part, range(self.size))

    def broadcast(self, part: Tensor, root: int) -> Tensor:
        """See the base class. The result may be `part` itself."""
        return self.give_among(part, range(self.size), root)

    def neighbours(self, size: int) -> RankGroup:
        """See the base class. The smaller group uses the connections of this one."""
        return self if size == self.size else NeighbouringRanks(self, self._neighbours(size))

    def reduce_among(self, part: Tensor, members: range) -> Tensor:
        """`all_reduce` of some ranks; all others do the same in groups as large.

        Args:
            part: of this rank.
            members: numbers of the ranks, this one among them.
        """
        part = part.contiguous()
        if len(members) == 1 or part.numel() == 0:
            return part
        deadline = self._begin("all_reduce", part)
        if self._slices(part, len(members)):
            self._reduce_sliced(part.view(len(members), -1), members, deadline)
        else:
            self._reduce_directly(part.view(-1), members, deadline)
        return part

    def gather_among(self, part: Tensor, members: range) -> Tensor:
        """`all_gather` of some ranks; see `reduce_among`."""
        rows, width = part.shape
        part, count = part.contiguous(), len(members)
        parts = part.new_empty((count, rows, width))
        parts[members.index(self.rank)].copy_(part)
        if count > 1 and part.numel() > 0:
            deadline = self._begin("all_gather", part)
            self._exchange("all_gather", members, [part] * count, list(parts), deadline)
        return parts.transpose(0, 1).reshape(rows, count * width)

    def give_among(self, part: Tensor, members: range, root: int) -> Tensor:
        """`broadcast` of some ranks; see `reduce_among`.

        Args:
            part: of this rank.
            members: numbers of the ranks, this one among them.
            root: which member gives, counted among them.
        """
        part, giver = part.contiguous(), members[root]
        if len(members) == 1 or part.numel() == 0:
            return part
        deadline = self._begin("broadcast", part)
        if self.rank == giver:
            others = {rank: part for rank in members if rank != giver}
            self._send("broadcast", others, {}, deadline)
        else:
            self._send("broadcast", {}, {giver: part}, deadline)
        return part

    @contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Let collectives within take so long: ranks that load weights are not in step."""
        self._deadline_s = seconds
        try:
            yield
        finally:
            self._deadline_s = self._config.deadline_s

    def settle(self) -> None:
        """Wait until every collective called so far is done; a device may lag behind its calls.

        Raises:
            RankLost: one failed, or is not done within the deadline.
        """
        self._require_whole()
        try:
            self._mesh.settle(Deadline.after(self._deadline_s))
        except ExchangeError as error:
            failure = self._lose("the step", error)
        else:
            return
        raise failure

    def abort(self, reason: RankLost) -> None:
        """Break the group because a rank was found to be lost; collectives raise `reason`."""
        if self._lost is None:
            self._lost = reason
        self._mesh.abort()

    def close(self) -> None:
        """Give back connections and threads, once no collective runs any more. Idempotent."""
        if self._lost is None:
            self._lost = RankLost(f"{self._config.describe()} has closed its group")
        self._mesh.abort()
        self._mesh.release()
        self._store = None

    def _slices(self, part: Tensor, count: int) -> bool:
        """Whether a part is summed in slices; depends on nothing that differs between ranks."""
        return count > 2 and part.nbytes >= self._sliced_from_bytes and part.numel() % count == 0

    def _reduce_directly(self, part: Tensor, members: range, deadline: Deadline) -> None:
        count = len(members)
        parts = list(self._scratch(part, count).view(count, -1))
        self._exchange("all_reduce", members, [part] * count, parts, deadline)
        parts[members.index(self.rank)] = part
        ordered_sum(parts, out=part)

    def _reduce_sliced(self, slices: Tensor, members: range, deadline: Deadline) -> None:
        """Args: slices: [members, elements], of the part of this rank."""
        parts, own = list(self._scratch(slices, 1).view_as(slices)), members.index(self.rank)
        rows = list(slices)
        self._exchange("all_reduce", members, rows, parts, deadline)
        mine = parts[own] = rows[own]
        ordered_sum(parts, out=mine)
        self._exchange("all_reduce", members, [mine] * len(members), rows, deadline)

    def _scratch(self, like: Tensor, count: int) -> Tensor:
        """Memory for `count` parts, kept from call to call: [count * elements of `like`]."""
        size = count * like.nbytes
        if self._buffer.nbytes < size:
            # An ordinary tensor, whatever mode it is first asked for in.
            with torch.inference_mode(False):
                self._buffer = torch.empty(size, dtype=torch.uint8, device=self._buffer.device)
        return self._buffer[:size].view(like.dtype)

    def _begin(self, phase: str, part: Tensor) -> Deadline:
        self._require_whole()
        if part.device.type != self._mesh.device_type:
            raise ValueError(f"{phase}: {self._mesh.backend} cannot move a {part.device} tensor")
        return Deadline.after(self._deadline_s)

    def _exchange(
        self,
        phase: str,
        members: range,
        sends: Sequence[Tensor],
        receives: Sequence[Tensor],
        deadline: Deadline,
    ) -> None:
        """Exchange tensors with the other members; there is one for each, in their order."""
        outgoing, incoming = (
            {rank: tensor for rank, tensor in zip(members, each, strict=True) if rank != self.rank}
            for each in (sends, receives)
        )
        self._send(phase, outgoing, incoming, deadline)

    def _send(
        self,
        phase: str,
        outgoing: Mapping[int, Tensor],
        incoming: Mapping[int, Tensor],
        deadline: Deadline,
    ) -> None:
        try:
            self._mesh.exchange(outgoing, incoming, deadline)
        except ExchangeError as error:
            failure = self._lose(phase, error)
        else:
            return
        raise failure

    def _lose(self, phase: str, error: ExchangeError) -> RankLost:
        """Break the group; returns the error to raise, which an earlier `abort` may have set."""
        peer = "another rank" if error.peer is None else f"rank {error.peer}"
        if self._lost is None:
            self._lost = RankLost(
                f"{self._config.describe()} lost {peer} in {phase}: {error.reason}"
            )
        return self._lost

    def _require_whole(self) -> None:
        if self._lost is not None:
            raise self._lost


class NeighbouringRanks(RankGroup):
    """Some ranks of a group; made by `DistributedRanks.neighbours`.

    Args:
        whole: the group.
        members: which ranks of it.
    """

    def __init__(self, whole: DistributedRanks, members: range) -> None:
        super().__init__(members.index(whole.rank), len(members))
        self._whole = whole
        self._members = members

    def all_reduce(self, part: Tensor) -> Tensor:
        """See the base class."""
        return self._whole.reduce_among(part, self._members)

    def all_gather(self, part: Tensor) -> Tensor:
        """See the base class."""
        return self._whole.gather_among(part, self._members)

    def broadcast(self, part: Tensor, root: int) -> Tensor:
        """See the base class."""
        return self._whole.give_among(part, self._members, root)

    def neighbours(self, size: int) -> RankGroup:
        """See the base class."""
        own = self._neighbours(size)
        members = self._members[own.start : own.stop]
        return self if size == self.size else NeighbouringRanks(self._whole, members)


def greet(config: RanksConfig, store: StoreBackend, deadline: Deadline) -> None:
    """Learn that every rank is there, which tells a missing one from a broken connection.

    Raises:
        RankLost: one did not come in time; names the first.
        LinkError: the store cannot answer.
    """
    store.set(f"hello/{config.rank}", b"")
    for rank in range(config.size):
        if store.get(f"hello/{rank}", deadline.remaining()) is None:
            raise RankLost(
                f"{config.describe()}: rank {rank} did not come within {config.connect_s:g} s"
            )


def ordered_sum(parts: Sequence[Tensor], out: Tensor) -> Tensor:
    """Add up parts from the first to the last.

    Args:
        parts: at least two, of one shape and dtype; 16-bit parts are added up in float32.
        out: where the sum goes; may be one of the parts.

    Returns:
        `out`.
    """
    total = parts[0].float() if parts[0].itemsize == 2 else parts[0]
    middle = parts[1:-1]
    if middle:
        total = total + middle[0]
    for part in middle[1:]:
        total += part
    return torch.add(total, parts[-1], out=out)
