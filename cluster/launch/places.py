"""Which machine each worker runs on, and what part of it each rank gets. Pure: asks no machine.

A deployment has one node, this machine, or the nodes of a Ray cluster. The ranks of a worker share
a node, because they talk over a Unix socket; workers go where the fewest ranks are.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from twinflow.cluster.config import ServeConfig
from twinflow.cluster.launch.machine import Gpus, Machine, Node
from twinflow.protos.errors import ConfigError
from twinflow.workers.role import Role

# Of the memory that is free at start, what all KV caches on a machine or GPU take together by
# default; and what is enough for a rank on a CPU, where every page of it is touched at start.
_KV_SHARE = 0.4
_KV_ENOUGH = 1 << 30


class NoRoom(ConfigError):
    """There are too few nodes, or GPUs, for the workers; a cluster may get more."""


@dataclass(frozen=True, slots=True)
class RankShare:
    """What one rank of a worker gets of a machine.

    Attributes:
        machine: as it was before any worker started.
        num_ranks: of all workers on it, which share it evenly.
        gpu: number of its own GPU, if workers run on GPUs.
        seat: its number among these ranks.
    """

    machine: Machine
    num_ranks: int
    gpu: int | None
    seat: int

    @property
    def threads(self) -> int:
        """Its processor cores."""
        return max(1, self.machine.cores // self.num_ranks)

    @property
    def kv_memory(self) -> int:
        """Bytes for its KV cache."""
        if self.gpu is not None:
            return int(self.machine.gpus.free_memory[self.gpu] * _KV_SHARE)
        return min(int(self.machine.free_memory * _KV_SHARE / self.num_ranks), _KV_ENOUGH)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker runs.

    Attributes:
        role: its pool.
        node: its machine.
        shares: what each of its ranks gets there.
    """

    role: Role
    node: Node
    shares: tuple[RankShare, ...]


@dataclass(slots=True)
class _Occupied:
    """A node while workers are dealt out."""

    node: Node
    ranks: int = 0
    seats: set[int] = field(default_factory=set)
    gpus: set[int] = field(default_factory=set)
    in_pool: dict[Role, int] = field(default_factory=dict)

    def has_room(self, role: Role, size: int, *, on_gpus: bool) -> bool:
        """Whether a worker of so many ranks may come."""
        if on_gpus and len(self._free_gpus()) < size:
            return False
        room = self.node.room
        return room is None or room.get(role, 0) - self.in_pool.get(role, 0) >= size

    def take(self, role: Role, size: int, *, on_gpus: bool) -> tuple[tuple[int, int | None], ...]:
        """Let a worker in; returns the seat and the GPU of each of its ranks."""
        gpus = tuple(self._free_gpus()[:size]) if on_gpus else (None,) * size
        free = (seat for seat in itertools.count() if seat not in self.seats)
        seats = tuple(zip(itertools.islice(free, size), gpus, strict=True))
        self._count(role, seats)
        return seats

    def hold(self, place: Place) -> None:
        """A worker is here already."""
        self._count(place.role, tuple((share.seat, share.gpu) for share in place.shares))

    def _count(self, role: Role, seats: tuple[tuple[int, int | None], ...]) -> None:
        self.ranks += len(seats)
        self.seats |= {seat for seat, _ in seats}
        self.gpus |= {gpu for _, gpu in seats if gpu is not None}
        self.in_pool[role] = self.in_pool.get(role, 0) + len(seats)

    def _free_gpus(self) -> list[int]:
        every = range(len(self.node.machine.gpus.free_memory))
        return [gpu for gpu in every if gpu not in self.gpus]


def place_workers(config: ServeConfig, nodes: Sequence[Node]) -> list[Place]:
    """Where each worker of a configuration runs, in the order of `config.worker_roles`.

    Args:
        config: what the operator asked for.
        nodes: every machine there is; the first of those that suit equally well is taken.

    Raises:
        NoRoom: not every worker finds a node.
    """
    sizes = [config.ranks(role) for role in config.worker_roles]
    if len(nodes) == 1:
        # The only machine: says more exactly what it lacks.
        on_gpus = _uses_gpus_of(config.device, nodes[0].machine.gpus, sizes)
    else:
        on_gpus = _cluster_uses_gpus(config.device, nodes)
    occupied = [_Occupied(node) for node in nodes]
    taken: list[tuple[_Occupied, tuple[tuple[int, int | None], ...]]] = []
    for index, role in enumerate(config.worker_roles):
        size = sizes[index]
        free = [one for one in occupied if one.has_room(role, size, on_gpus=on_gpus)]
        if not free:
            raise _no_room(role, size, len(nodes), on_gpus=on_gpus)
        where = min(free, key=lambda one: one.ranks)
        taken.append((where, where.take(role, size, on_gpus=on_gpus)))
    return [
        Place(
            role,
            where.node,
            tuple(RankShare(where.node.machine, where.ranks, gpu, seat) for seat, gpu in seats),
        )
        for role, (where, seats) in zip(config.worker_roles, taken, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Floor:
    """The nodes of a deployment while workers come and go.

    Attributes:
        config: what the operator asked for.
        nodes: every machine there is.
        first: where the workers of the beginning run, who share the nodes evenly. One that comes
            later gets as much as one of them.
    """

    config: ServeConfig
    nodes: Sequence[Node]
    first: Sequence[Place]

    @property
    def _on_gpus(self) -> bool:
        return any(share.gpu is not None for place in self.first for share in place.shares)

    def find(self, role: Role, taken: Sequence[Place]) -> Place | None:
        """Where one more worker could run; None if nowhere.

        Args:
            role: its pool.
            taken: where workers are now.
        """
        size = self.config.ranks(role)
        occupied = [_Occupied(node) for node in self.nodes]
        for place in taken:
            next(one for one in occupied if one.node == place.node).hold(place)
        free = [one for one in occupied if one.has_room(role, size, on_gpus=self._on_gpus)]
        if not free:
            return None
        where = min(free, key=lambda one: one.ranks)
        seats = where.take(role, size, on_gpus=self._on_gpus)
        machine, parts = where.node.machine, self._parts(where.node, size)
        shares = (RankShare(machine, parts, gpu, seat % parts) for seat, gpu in seats)
        return Place(role, where.node, tuple(shares))

    def room(self, role: Role, taken: Sequence[Place]) -> int | None:
        """How many more workers of a pool would find a place; None if memory alone decides."""
        if not self._on_gpus and any(node.room is None for node in self.nodes):
            return None
        now = list(taken)
        while (place := self.find(role, now)) is not None:
            now.append(place)
        return len(now) - len(taken)

    def _parts(self, node: Node, size: int) -> int:
        """Into how many parts a node is shared."""
        return max(size, sum(len(place.shares) for place in self.first if place.node == node))


def _uses_gpus_of(device: str, gpus: Gpus, sizes: Sequence[int]) -> bool:
    """Whether the workers run on the GPUs of the only machine, each rank on its own.

    Raises:
        NoRoom: they should, and there are not enough.
    """
    count = len(gpus.free_memory)
    if device == "cpu" or (device == "auto" and not count):
        return False
    if not count:
        raise NoRoom(f"--device cuda: {gpus.problem}; use --device cpu")
    if count < sum(sizes):
        who = f"{len(sizes)} workers"
        if max(sizes) > 1:
            who += f" of {sum(sizes)} ranks together"
        raise NoRoom(
            f"--device {device}: {who} need a GPU each and torch sees {count}; start fewer "
            "(--mixed 1 is a single worker, --tensor-parallel-size its ranks), or use --device cpu"
        )
    return True


def _cluster_uses_gpus(device: str, nodes: Sequence[Node]) -> bool:
    if device == "auto":
        return any(node.machine.gpus.free_memory for node in nodes)
    return device == "cuda"


def _no_room(role: Role, size: int, nodes: int, *, on_gpus: bool) -> NoRoom:
    what = f"{size} ranks" if size > 1 else "a rank"
    needs = f"{what} of pool {role}" + (", with a GPU each" if on_gpus else "")
    return NoRoom(
        f"none of {nodes} nodes has room for {needs}; start fewer workers, or add a node that "
        f"declares the resource twinflow_{role}, or nodes that declare no pool at all"
    )
