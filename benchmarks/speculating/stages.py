"""How long drafting takes on several ranks, by layout and group size.

The ranks are processes of this machine, connected over gloo as those of a worker are. A round is
one proposal to one sequence: an exact pass over three rows, what a sequence gains, and a grouped
pass over one row for each further token. All arms take a turn in every round; a time is that of the
slowest rank. Weights are random: only sizes matter.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.random_model import random_model
from benchmarks.rank_processes import connect, run_ranks
from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.runtime.kernels.registry import AUTO, choose_kernels
from twinflow.runtime.kv.layouts import model_layout, rank_layout
from twinflow.runtime.model_runner import ModelRunner, SequenceRows
from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.owners import LayerOwners
from twinflow.runtime.speculative.layer_parallel.plan import LayerPlan
from twinflow.runtime.speculative.layer_parallel.share import DraftShare

SIZES = range(1, 6)
BASE = ("fused_tp", 1)
_GAINED = 3
_CONTEXT = 64
_WARM_UP = 2
_BLOCK = 16
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Shape:
    """A drafter whose heads two ranks can share.

    Attributes:
        name: in tables.
        hidden: width.
        inner: of MLPs.
        layers: how many.
        heads: of queries; twice those of keys.
    """

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int

    @property
    def config(self) -> ModelConfig:
        """Its shape."""
        return ModelConfig(
            architecture="LlamaForCausalLM",
            vocab_size=4096,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_layers=self.layers,
            num_heads=self.heads,
            num_kv_heads=self.heads // 2,
            head_dim=self.hidden // self.heads,
            max_position=1024,
            eos_token_ids=(2,),
        )


SHAPES = (
    Shape("30 layers of 576, as SmolLM2-135M", 576, 1536, 30, 8),
    Shape("30 layers of 192, as nano-drafter's", 192, 384, 30, 4),
)
LAYOUTS = {
    "single": DraftShare(),
    "fused_tp": DraftShare("fused_tp", "tp", 2),
    "owner, tp MLPs": DraftShare("owner", "tp", 2),
    "owner, whole MLPs": DraftShare("owner", "replicated", 2),
}

# Seconds of every round by shape, layout and group size.
Times = dict[tuple[str, str, int], list[float]]


def measure(ranks: int, rounds: int, count: int) -> Times:
    """Time every arm on so many ranks, for proposals of `count` tokens."""
    found: Times = {}
    for shape in SHAPES:
        each = run_ranks(ranks, _rank, shape, rounds, count)
        for arm in each[0]:
            slowest = [max(times) for times in zip(*(one[arm] for one in each), strict=True)]
            found[(shape.name, *arm)] = slowest
    return found


def _rank(
    rank: int, size: int, folder: Path, shape: Shape, rounds: int, count: int
) -> dict[tuple[str, int], list[float]]:
    torch.set_num_threads(1)
    fence = connect(rank, size, folder / "fence")
    ranks = connect(rank, size, folder / "ranks")
    runners = {name: _runner(shape.config, share, ranks) for name, share in LAYOUTS.items()}
    found: dict[tuple[str, int], list[float]] = {}
    for number in range(_WARM_UP + rounds):
        for name, runner in runners.items():
            for group in SIZES:
                plan = LayerPlan.uniform(shape.layers, group)
                fence.all_reduce(torch.ones(1, 1))
                took = _draft(runner, plan, count) if name != "single" or rank == 0 else 0.0
                if number >= _WARM_UP:
                    found.setdefault((name, group), []).append(took)
    fence.all_reduce(torch.ones(1, 1))
    return found


def _runner(config: ModelConfig, share: DraftShare, ranks: RankGroup) -> ModelRunner:
    group = OneRank() if share.layout == "single" else ranks
    owners = None
    if share.layout == "owner":
        replicated = share.mlp == "replicated"
        owners = LayerOwners.of(group, config.num_layers, replicated=replicated)
    placement = Placement(
        dtype=torch.float32,
        device=_CPU,
        ranks=group,
        kernels=choose_kernels(AUTO, "cpu", torch.float32),
        owners=owners,
    )
    held = placement.of_attention.ranks
    layout = rank_layout(model_layout(config, _BLOCK, "float32", held.size), held)
    layout = replace(layout, num_layers=placement.num_kv_layers(config.num_layers))
    blocks = 2 + (_CONTEXT + 64) // _BLOCK
    runner = ModelRunner(random_model(config, placement), layout, blocks, _CONTEXT, _CPU)
    runner.forward([_rows(list(range(_CONTEXT)), 0)])
    return runner


def _draft(runner: ModelRunner, plan: LayerPlan, count: int) -> float:
    start = time.perf_counter()
    runner.forward([_rows(list(range(_GAINED)), _CONTEXT)])
    groups = None if plan.is_serial else plan.groups
    for number in range(1, count):
        runner.forward([_rows([number], _CONTEXT + _GAINED + number - 1)], groups=groups)
    return time.perf_counter() - start


def _rows(tokens: Sequence[int], start: int) -> SequenceRows:
    blocks = range(1, 2 + (_CONTEXT + 64) // _BLOCK)
    return SequenceRows(tokens, start, blocks, samples=True)
