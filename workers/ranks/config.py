"""Who the ranks of a worker are, and how long they wait for each other. Opens nothing itself."""

from dataclasses import dataclass

from twinflow.parallel.ranks.config import RanksConfig
from twinflow.protos.errors import ConfigError
from twinflow.workers.config import WorkerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamConfig:
    """One rank among those of its worker.

    Attributes:
        worker_id: whose ranks they are.
        epoch: which life of the worker.
        rank: this one.
        size: how many there are.
        address: of rank 0's socket; see `twinflow.workers.ranks.address`.
        token: the deployment's secret.
        device: where this rank computes.
        bind_address: interface for gloo's data port.
        meet_s: seconds until all ranks must have started; they read the model's files meanwhile.
        load_s: seconds by which one rank may be done loading before another.
        silence_s: a rank that says nothing for so long is lost.
        beat_s: how often a rank says that it lives.

    Raises:
        ConfigError: a field has a value that no team can be made with.
    """

    worker_id: str
    epoch: int
    rank: int
    size: int
    address: str
    token: str
    device: str = "cpu"
    bind_address: str = "127.0.0.1"
    meet_s: float = 600.0
    load_s: float = 600.0
    silence_s: float = 4.0
    beat_s: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ConfigError(
                f"rank is {self.rank}: a worker of tensor_parallel_size {self.size} has ranks "
                f"0..{self.size - 1}"
            )
        if self.size > 1 and not self.address:
            raise ConfigError("leader_address is empty: ranks need it to find each other")
        if not 0 < self.beat_s < self.silence_s:
            raise ConfigError(
                f"beat_s is {self.beat_s}: it must be above 0 and below silence_s "
                f"({self.silence_s})"
            )

    @classmethod
    def of(cls, config: WorkerConfig) -> "TeamConfig":
        """The rank that a worker's configuration is for."""
        return cls(
            worker_id=config.worker_id,
            epoch=config.epoch,
            rank=config.rank,
            size=config.tensor_parallel_size,
            address=config.leader_address,
            token=config.token,
            device=config.device,
            bind_address=config.host,
        )

    def describe(self, rank: int | None = None) -> str:
        """A rank, this one by default, for error messages."""
        return f"rank {self.rank if rank is None else rank} of {self.worker_id}"

    def ranks_config(self) -> RanksConfig:
        """How this rank takes part in collectives."""
        return RanksConfig(
            worker=self.worker_id,
            rank=self.rank,
            size=self.size,
            bind_address=self.bind_address,
            backend="nccl" if self.device.startswith("cuda") else "gloo",
            device=self.device,
            deadline_s=self.silence_s,
        )
