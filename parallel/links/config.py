"""Who is at the other end of a link, and how the link is made. Opens nothing itself."""

import ipaddress
from dataclasses import dataclass
from typing import Literal

from twinflow.protos.errors import ConfigError

BackendName = Literal["gloo", "nccl"]


@dataclass(frozen=True, slots=True)
class LinkPeer:
    """One life of a worker.

    Attributes:
        worker_id: name of the worker, the same in every life.
        epoch: number of the life; a restarted worker has a larger one.
    """

    worker_id: str
    epoch: int

    def __str__(self) -> str:
        return f"{self.worker_id} (epoch {self.epoch})"


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """One end of a link.

    Attributes:
        link_id: the same at both ends, unique among the links of either.
        rank: 0 for the end that hosts the rendezvous store and sends blocks, 1 for the other.
        peer: who is at the other end.
        bind_address: address of the interface that the data port listens on; never a wildcard.
        backend: `gloo` moves tensors of the CPU, `nccl` those of CUDA devices.
        device: device of the tensors, such as `cpu` or `cuda:0`.
        deadline_s: seconds that opening, or one send or receive, may take unless it says otherwise.

    Raises:
        ConfigError: a field has a value that no link can be made with.
    """

    link_id: str
    rank: Literal[0, 1]
    peer: LinkPeer
    bind_address: str = "127.0.0.1"
    backend: BackendName = "gloo"
    device: str = "cpu"
    deadline_s: float = 10.0

    def __post_init__(self) -> None:
        if not self.link_id:
            raise ConfigError("link_id is empty: give every link an id of its own")
        if self.rank not in (0, 1):
            raise ConfigError(f"rank is {self.rank}: a link has ranks 0 and 1")
        if not self.deadline_s > 0:
            raise ConfigError(f"deadline_s is {self.deadline_s}: give a positive number of seconds")
        if _is_wildcard(self.bind_address):
            raise ConfigError(
                f"bind_address {self.bind_address!r} means every interface: name the address of "
                "the one that connects the workers"
            )

    @property
    def peer_rank(self) -> int:
        """Rank of the other end."""
        return 1 - self.rank


def _is_wildcard(address: str) -> bool:
    if not address:
        return True
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False  # a host name; it is resolved when the link is opened
