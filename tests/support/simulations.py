"""Small simulated deployments."""

from dataclasses import dataclass, field
from typing import Any

from tests.support.cost import LLAMA_8B, h100

from twinflow.cluster.dispatch.admission import AdmissionLimits
from twinflow.cluster.simulator.config import Deployment, Link, Partition, SimulationConfig
from twinflow.cluster.simulator.fleet import Fleet
from twinflow.cluster.simulator.lengths import Lengths
from twinflow.cluster.simulator.measures import Objective
from twinflow.cluster.simulator.traces import Shape
from twinflow.cluster.simulator.workload import Workload
from twinflow.parallel.partition.control import ControlConfig
from twinflow.parallel.partition.layout import Grid
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.cost.lanes import LaneTimes

TOKEN_BYTES = LLAMA_8B.kv_bytes * LLAMA_8B.num_layers
TIMES = LaneTimes(h100())
H100 = Grid.of(132, 8, 8)
DYNAMIC = Partition(H100, ControlConfig(), H100.middle)
STATIC = Partition(H100, None, H100.middle)
OBJECTIVES = (Objective("ttft", 1000.0), Objective("tpot", 50.0))


@dataclass(frozen=True)
class Setting:
    """What a test changes of a simulation of Llama-3.1-8B on H100s."""

    deployment: str = "1M"
    replicas: int = 1
    partition: Partition | None = None
    run_ahead: bool = True
    seed: int = 0
    admission: AdmissionLimits = field(default_factory=AdmissionLimits)
    link: Link = field(default_factory=lambda: Link(5e10))

    def config(self, **engine: Any) -> SimulationConfig:
        """The configuration, with changes of the engine's."""
        limits: dict[str, Any] = {
            "max_model_len": 16384,
            "num_blocks": 4096,
            "max_num_seqs": 64,
            "max_num_batched_tokens": 1024,
            "enable_prefix_caching": False,
        }
        return SimulationConfig(
            deployment=Deployment.parse(self.deployment, self.replicas),
            engine=EngineConfig(**(limits | engine)),
            num_layers=LLAMA_8B.num_layers,
            token_bytes=TOKEN_BYTES,
            times=TIMES,
            link=self.link,
            partition=self.partition,
            admission=self.admission,
            run_ahead=self.run_ahead,
            seed=self.seed,
        )

    def run(self, workload: Workload, **engine: Any) -> Fleet:
        """Simulate, and check that nothing is left behind."""
        fleet = Fleet(self.config(**engine), OBJECTIVES)
        fleet.run(workload)
        fleet.check_integrity()
        return fleet


def poisson(requests: int, rate: float, shape: str = "1000:100") -> Workload:
    """Random lengths around `input:output`, at a rate."""
    inputs, outputs = map(int, shape.split(":"))
    return Workload(
        requests,
        input_tokens=Lengths("uniform", (inputs // 4, 2 * inputs)),
        output_tokens=Lengths("uniform", (1, 2 * outputs)),
        rate=rate,
    )


def at(*requests: tuple[float, int, int]) -> Workload:
    """Requests given as (arrival, input tokens, output tokens)."""
    shapes = [Shape(inputs, outputs, time) for time, inputs, outputs in requests]
    return Workload(len(shapes), shapes)
