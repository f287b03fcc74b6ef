"""Runs arms under virtual time on the H100 that twinflow describes (`runtime/cost/devices`)."""

from dataclasses import dataclass

from benchmarks.lanes.arms import Arm
from benchmarks.lanes.mixed import mixed
from twinflow.cluster.dispatch.admission import AdmissionLimits
from twinflow.cluster.simulator.config import Deployment, Link, SimulationConfig
from twinflow.cluster.simulator.fleet import Fleet
from twinflow.cluster.simulator.hardware import Hardware
from twinflow.cluster.simulator.report import Report
from twinflow.cluster.simulator.workload import Workload
from twinflow.parallel.partition.layout import Grid
from twinflow.protos.errors import ConfigError
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.cost.device import load_device
from twinflow.runtime.cost.lanes import LaneTimes
from twinflow.runtime.cost.shape import ModelShape
from twinflow.runtime.models.config import ModelConfig

_DEVICE = "h100"
_BLOCK_SIZE = 16
_MAX_MODEL_LEN = 16384
# So fast that all requests wait: what is served then is all that can be.
_FLOOD_RATE = 1000.0
_NO_LIMITS = AdmissionLimits(max_requests=1 << 30, max_tokens=1 << 40, max_bytes=1 << 50)

LLAMA_8B = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position=131072,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    tie_word_embeddings=False,
    eos_token_ids=(2,),
    dtype="bfloat16",
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of an arm, in milliseconds and requests per second.

    Attributes:
        ttft_mean: time to first token.
        ttft_p99: likewise.
        tbt_mean: gap between two tokens.
        tbt_p50: likewise.
        tbt_p99: likewise.
        e2e_mean: time to the last token.
        rate: requests that were served per second.
        switches: changes of the division.
    """

    ttft_mean: float
    ttft_p99: float
    tbt_mean: float
    tbt_p50: float
    tbt_p99: float
    e2e_mean: float
    rate: float
    switches: int


class Device:
    """A described device with Llama 3.1 8B on it."""

    def __init__(self) -> None:
        shape = ModelShape.of(LLAMA_8B, element_bytes=2)
        self._hardware = Hardware.described(load_device(_DEVICE), shape)
        self._token_bytes = shape.kv_bytes * shape.num_layers
        if self._hardware.grid is None:
            raise ConfigError(f"{_DEVICE} cannot be divided")
        self.grid: Grid = self._hardware.grid

    def capacity(self, arm: Arm, requests: int, seed: int) -> float:
        """Requests per second that an arm serves if all of them are there from the start."""
        return self.run(arm, requests, _FLOOD_RATE, seed).rate

    def run(self, arm: Arm, requests: int, rate: float, seed: int) -> Figures:
        """Poisson arrivals at a rate."""
        fleet = Fleet(self._config(arm, requests, seed), ())
        fleet.run(Workload(requests, mixed(requests, seed), rate=rate))
        return _figures(fleet.report())

    def _config(self, arm: Arm, requests: int, seed: int) -> SimulationConfig:
        hardware = self._hardware
        blocks = int(hardware.kv_bytes / self._token_bytes / _BLOCK_SIZE)
        return SimulationConfig(
            deployment=Deployment({"mixed": 1}),
            engine=EngineConfig(
                max_model_len=_MAX_MODEL_LEN,
                num_blocks=blocks,
                block_size=_BLOCK_SIZE,
                max_num_seqs=256,
                max_num_batched_tokens=arm.chunk,
                scheduler="chunked",
                prefill_order=arm.order,
                tbt_objective=arm.tbt_objective,
                enable_prefix_caching=False,
            ),
            num_layers=LLAMA_8B.num_layers,
            token_bytes=self._token_bytes,
            times=LaneTimes(hardware.times),
            link=Link(hardware.link_bytes_per_s),
            partition=arm.lanes,
            admission=_NO_LIMITS,
            seed=seed,
        )


def _figures(report: Report) -> Figures:
    if report.rejected or report.failed:
        raise RuntimeError(f"{report.rejected} requests were rejected, {report.failed} failed")
    ttft, gaps, whole = (report.latencies[name] for name in ("TTFT", "TBT", "E2E"))
    return Figures(
        ttft_mean=ttft.mean,
        ttft_p99=ttft.p99,
        tbt_mean=gaps.mean,
        tbt_p50=gaps.p50,
        tbt_p99=gaps.p99,
        e2e_mean=whole.mean,
        rate=report.request_rate,
        switches=report.switches,
    )
