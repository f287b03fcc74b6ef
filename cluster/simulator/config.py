"""What is simulated: workers, their engines, what computes and what connects them.

Values only, every one filled in. Where they come from, flags or a file, is the command's business.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from twinflow.cluster.dispatch.admission import AdmissionLimits
from twinflow.parallel.partition.control import ControlConfig
from twinflow.parallel.partition.layout import Grid
from twinflow.protos.errors import ConfigError
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.cost.lanes import LaneTimes
from twinflow.workers.role import Role

_POOLS: dict[str, Role] = {"P": "prefill", "D": "decode", "M": "mixed"}


@dataclass(frozen=True, slots=True)
class Deployment:
    """How many workers there are of each role, and how often all of that.

    Attributes:
        pools: workers by role.
        replicas: deployments of this kind side by side, each with a gateway of its own; requests
            are dealt out to them in turn.
    """

    pools: dict[Role, int]
    replicas: int = 1

    def __post_init__(self) -> None:
        if self.replicas < 1 or not any(self.pools.values()):
            raise ConfigError("a deployment needs at least one worker and one replica")
        if not (self.pools.get("decode") or self.pools.get("mixed")):
            raise ConfigError("a deployment needs a decode worker (D) or a mixed one (M)")

    @classmethod
    def parse(cls, text: str, replicas: int = 1) -> "Deployment":
        """Read `1P2D`, `4M` or `1P2D1M`.

        Raises:
            ConfigError: it is written in another way.
        """
        if not re.fullmatch(r"(\d+[PDM])+", text):
            raise ConfigError(f"--deployment {text!r}: write it like 1P2D, 4M or 1P2D1M")
        pools: dict[Role, int] = {}
        for count, letter in re.findall(r"(\d+)([PDM])", text):
            pools[_POOLS[letter]] = pools.get(_POOLS[letter], 0) + int(count)
        return cls(pools, replicas)

    @property
    def num_workers(self) -> int:
        """Workers of all replicas."""
        return self.replicas * sum(self.pools.values())


@dataclass(frozen=True, slots=True)
class Link:
    """What KV is handed over on.

    Attributes:
        bytes_per_s: that leave a worker.
        latency_s: of a transfer, whatever its size.
        units: parts into which KV is cut by layers; all but the last one travel while later
            layers are computed.
    """

    bytes_per_s: float
    latency_s: float = 0.001
    units: int = 4


@dataclass(frozen=True, slots=True)
class Partition:
    """Two lanes on every mixed worker.

    Attributes:
        grid: layouts of a device.
        control: decides among them; None for a split that stays.
        split: the index in the grid that stays, or with which to begin.
    """

    grid: Grid
    control: ControlConfig | None
    split: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig:
    """A deployment.

    Attributes:
        deployment: workers.
        engine: limits and policies of the engine of each worker whose pool has no others.
        engines: those of pools that have others; of one size of blocks and sequences with `engine`,
            because KV is handed over.
        num_layers: layers of the model.
        token_bytes: bytes of KV of a token.
        times: how long steps take.
        link: between workers.
        partition: lanes of mixed workers; None for none.
        admission: bounds of each gateway's queue.
        report_s: how old a worker's load may be that its gateway goes by.
        run_ahead: take decode steps that nothing disturbs as one event; changes no outcome.
        seed: of everything that is drawn.
    """

    deployment: Deployment
    engine: EngineConfig
    num_layers: int
    token_bytes: float
    times: LaneTimes
    link: Link
    engines: Mapping[Role, EngineConfig] = field(default_factory=dict)
    partition: Partition | None = None
    admission: AdmissionLimits = field(default_factory=AdmissionLimits)
    report_s: float = 0.05
    run_ahead: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for role, engine in self.engines.items():
            for name in ("block_size", "max_model_len", "enable_prefix_caching"):
                if getattr(engine, name) != getattr(self.engine, name):
                    raise ValueError(f"{name} of the {role} pool is not that of the others")

    def engine_of(self, role: Role) -> EngineConfig:
        """Limits and policies of a worker of a pool."""
        return self.engines.get(role, self.engine)
