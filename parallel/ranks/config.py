"""Who is in a group of ranks, and how long its members wait. Opens nothing itself."""

from dataclasses import dataclass

from twinflow.parallel.links.config import BackendName
from twinflow.protos.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksConfig:
    """One rank of a group.

    Attributes:
        worker: whose ranks they are, for error messages.
        rank: this one.
        size: how many there are.
        bind_address: address of the interface that gloo's data port listens on.
        backend: `gloo` adds up tensors of the CPU, `nccl` those of CUDA devices.
        device: device of the tensors, such as `cpu` or `cuda:0`.
        connect_s: seconds until all ranks must have come.
        deadline_s: seconds that a collective may take, which is how long a frozen rank is waited
            for. Ranks compute the same rows, so that one waits for another's delay and not for
            its work.

    Raises:
        ConfigError: a field has a value that no group can be made with.
    """

    worker: str
    rank: int
    size: int
    bind_address: str = "127.0.0.1"
    backend: BackendName = "gloo"
    device: str = "cpu"
    connect_s: float = 30.0
    deadline_s: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"rank is {self.rank}: a group of {self.size} has 0..{self.size - 1}")
        for name in ("connect_s", "deadline_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}: give a positive number of seconds"
                )

    def describe(self) -> str:
        """Which rank of which worker, for error messages."""
        return f"rank {self.rank} of {self.worker}"
