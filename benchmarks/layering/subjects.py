"""What `benchmarks.layered` schedules: real models of random weights, or a described device.

A subject makes an engine for each arm. Engines of a real model share its weights; a simulated
one takes its step times and the experts that rows need from the cost model.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.layering.arms import Arm
from benchmarks.random_model import random_model
from benchmarks.replay import Clock, Timeline
from twinflow.cluster.simulator.executor import VirtualClock, VirtualExecutor
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.cost.device import load_device
from twinflow.runtime.cost.model import CostModel
from twinflow.runtime.cost.shape import ModelShape
from twinflow.runtime.engine import Engine
from twinflow.runtime.executor import Executor, LayersDone, Work
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.kv.layouts import model_layout
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.model_executor import ModelExecutor
from twinflow.runtime.model_runner import ModelRunner
from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.config import ModelConfig, MoEConfig
from twinflow.runtime.outputs import SampledRun
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.schedulers.setup import SchedulerSetup

_BLOCK_SIZE = 16
_MAX_SEQUENCES = 32
_CPU = torch.device("cpu")

# Published coverage of Qwen3-30B-A3B on ShareGPT: 86 % of a layer's experts by 128 rows, under 70 %
# by 64 (notes on arXiv 2510.08055). Experts of popularity rank^-1.2 give 87 % and 71 %; evenly
# chosen ones 100 % and 98 %.
PUBLISHED_SKEW = 1.2


class Subject(Protocol):
    """What is scheduled.

    Attributes:
        name: for the table.
        vocab_size: of prompts.
        expert_bytes: of all routed experts of all layers; 0 without experts.
        clock: seconds that steps take.
        real: whether they are computed.
    """

    name: str
    vocab_size: int
    expert_bytes: float
    clock: Clock
    real: bool

    def engine(self, arm: Arm, timeline: Timeline, kv_tokens: int) -> Engine:
        """An idle engine with room for so many tokens, whose steps take place on a time line."""
        ...


class RealModel:
    """A model of random weights on one core; see `Subject`.

    Args:
        name: for the table.
        config: its sizes.
        clock: seconds that steps take.
    """

    def __init__(self, name: str, config: ModelConfig, clock: Clock = time.perf_counter) -> None:
        self.name = name
        self.vocab_size = config.vocab_size
        self.expert_bytes = 0.0
        if config.moe is not None:
            matrices = 3 * config.hidden_size * config.moe.expert_size
            self.expert_bytes = 4.0 * config.num_layers * config.moe.num_experts * matrices
        self.clock, self.real = clock, True
        self._config = config
        self._model = random_model(config, Placement(dtype=torch.float32, device=_CPU))

    def engine(self, arm: Arm, timeline: Timeline, kv_tokens: int) -> Engine:
        """See `Subject.engine`."""
        limits = _limits(arm, kv_tokens)
        runner = ModelRunner(
            self._model,
            model_layout(self._config, _BLOCK_SIZE, "float32"),
            limits.num_blocks,
            arm.rows,
            _CPU,
        )
        executor = ModelExecutor(
            runner,
            Sampler(self.vocab_size, "cpu"),
            vocab_size=self.vocab_size,
            layers_per_unit=0,
        )
        return _engine(arm, limits, executor, self._config.num_layers, timeline)


class DescribedDevice:
    """A model on a shipped device, under virtual time; see `Subject`.

    Args:
        name: for the table.
        shape: of the model.
        device: name of its description.
    """

    def __init__(self, name: str, shape: ModelShape, device: str = "h100") -> None:
        self.name = name
        self.vocab_size = 1
        self.expert_bytes = shape.num_layers * shape.num_experts * shape.expert_bytes
        self._virtual = VirtualClock()
        self.clock: Clock = self._virtual
        self.real = False
        self._times = load_device(device).cost_model(shape)

    def engine(self, arm: Arm, timeline: Timeline, kv_tokens: int) -> Engine:
        """See `Subject.engine`."""
        executor = CountingExecutor(self._virtual, self._times)
        layers = self._times.shape.num_layers
        return _engine(arm, _limits(arm, kv_tokens), executor, layers, timeline)


class CountingExecutor(VirtualExecutor):
    """A simulated executor that also counts the experts that rows are expected to need."""

    def __init__(self, clock: VirtualClock, times: CostModel) -> None:
        super().__init__(clock, lambda load, work: times.seconds(load))
        self._shape = times.shape
        self._traffic: list[LayerTraffic] = []

    def execute(self, work: Sequence[Work], on_layers: LayersDone | None) -> list[SampledRun]:
        """See `Executor.execute`."""
        shape = self._shape
        self._traffic = []
        for segment in StepLoad.of([item.group for item in work]).segments:
            experts = shape.experts_hit(segment.rows)
            layer = LayerTraffic(0, (), round(experts), round(experts * shape.expert_bytes))
            self._traffic += [layer] * segment.layers
        return super().execute(work, on_layers)

    def take_traffic(self) -> Sequence[LayerTraffic]:
        """See `Executor.take_traffic`; layers are not told apart."""
        return self._traffic if self._shape.num_experts else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewedShape(ModelShape):
    """A model some of whose experts are chosen more often than others.

    Attributes:
        skew: an expert's popularity is its rank to the power of minus this.
    """

    skew: float

    def experts_hit(self, rows: int) -> float:
        """Distinct routed experts that rows are expected to need, each choosing on its own."""
        chances = _chances(self.num_experts, self.experts_per_token, self.skew)
        return float((1.0 - (1.0 - chances) ** rows).sum())


@cache
def _chances(experts: int, chosen: int, skew: float) -> NDArray[np.float64]:
    """How likely a row chooses each expert; none is chosen twice, so no chance is above 1."""
    popularity = np.arange(1, experts + 1, dtype=np.float64) ** -skew
    low, high = 0.0, chosen / popularity[-1]
    for _ in range(100):
        middle = (low + high) / 2
        if np.minimum(1.0, middle * popularity).sum() < chosen:
            low = middle
        else:
            high = middle
    chances: NDArray[np.float64] = np.minimum(1.0, high * popularity)
    return chances


def subjects(names: Sequence[str], clock: Clock) -> Iterator[Subject]:
    """Make them, one when it is asked for: `moe` and `dense` here, `even` and `skewed` on H100."""
    for name in names:
        if name in ("moe", "dense"):
            yield RealModel(name, SMALL_MOE if name == "moe" else SMALL_DENSE, clock)
        else:
            shape = ModelShape.of(QWEN3_30B_A3B, element_bytes=2)
            skew = PUBLISHED_SKEW if name == "skewed" else 0.0
            yield DescribedDevice(name, SkewedShape(**asdict(shape), skew=skew))


def _limits(arm: Arm, kv_tokens: int) -> EngineConfig:
    return EngineConfig(
        max_model_len=kv_tokens,
        num_blocks=kv_tokens // _BLOCK_SIZE + 1,
        block_size=_BLOCK_SIZE,
        max_num_seqs=_MAX_SEQUENCES,
        max_num_batched_tokens=arm.rows,
        enable_prefix_caching=False,
        # Preemptions would be counted as a schedule's.
        admission="conservative",
    )


def _engine(
    arm: Arm, limits: EngineConfig, executor: Executor, num_layers: int, timeline: Timeline
) -> Engine:
    blocks = BlockManager(
        limits.num_blocks,
        limits.block_size,
        model_fingerprint="",
        layout_digest="",
        enable_prefix_caching=False,
    )
    scheduler = arm.policy(SchedulerSetup.of(limits, num_layers))
    return Engine(limits, executor, blocks, scheduler, num_layers=num_layers, clock=timeline)


# Experts of 403 MB, a few times any last-level cache, of which a row needs one in sixteen, as in
# Qwen3-30B-A3B; little else, so that one core is through with a prompt in seconds.
SMALL_MOE = ModelConfig(
    architecture="Qwen3MoeForCausalLM",
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=8192,
    num_layers=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_position=65536,
    qk_norm=True,
    moe=MoEConfig(layers=tuple(range(16)), num_experts=32, experts_per_token=2, expert_size=256),
    eos_token_ids=(0,),
)
# As large, without a choice.
SMALL_DENSE = replace(SMALL_MOE, architecture="Qwen3ForCausalLM", moe=None)
QWEN3_30B_A3B = ModelConfig(
    architecture="Qwen3MoeForCausalLM",
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=6144,
    num_layers=48,
    num_heads=32,
    num_kv_heads=4,
    head_dim=128,
    max_position=40960,
    qk_norm=True,
    moe=MoEConfig(layers=tuple(range(48)), num_experts=128, experts_per_token=8, expert_size=768),
    eos_token_ids=(151645,),
)
