"""Steps of a model on 1, 2 and 4 ranks: `python -m benchmarks.rank_steps --out DIR`.

A small random Llama is cut for each number of ranks. In each round every arm computes one prompt
chunk and one decode step of several sequences, one arm after the other, while the processes that do
not take part wait. A time is that of the slowest rank; `sums` is the share of it that lies within
`all_reduce` and `all_gather`, waiting for other ranks included.

Writes report.md (the table), report.json and report.png. Checks no results: tests do.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.random_model import random_model
from benchmarks.rank_processes import connect, run_ranks
from benchmarks.rank_report import PHASES, SIZES, Times, as_markdown, cells, draw
from benchmarks.reporting import Report, machine_line
from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.runtime.kv.layouts import model_layout, rank_layout
from twinflow.runtime.model_runner import ModelRunner, SequenceRows
from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.config import ModelConfig

BLOCK_SIZE = 16
_CPU = torch.device("cpu")
_WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        hidden: width of the model.
        layers: of the model.
        chunk: tokens of the prompt chunk.
        batch: sequences that decode, each behind `chunk` tokens.
        rounds: of all arms.
    """

    hidden: int
    layers: int
    chunk: int
    batch: int
    rounds: int

    @property
    def model(self) -> ModelConfig:
        """Its shape."""
        return ModelConfig(
            architecture="LlamaForCausalLM",
            vocab_size=8192,
            hidden_size=self.hidden,
            intermediate_size=3 * self.hidden,
            num_layers=self.layers,
            num_heads=8,
            num_kv_heads=4,
            head_dim=self.hidden // 8,
            max_position=4096,
            eos_token_ids=(2,),
        )


class TimedRanks(RankGroup):
    """Ranks that count the seconds of their collectives."""

    def __init__(self, ranks: RankGroup) -> None:
        super().__init__(ranks.rank, ranks.size)
        self._ranks = ranks
        self.seconds = 0.0

    def all_reduce(self, part: Tensor) -> Tensor:
        """See the base class."""
        start = time.perf_counter()
        total = self._ranks.all_reduce(part)
        self.seconds += time.perf_counter() - start
        return total

    def all_gather(self, part: Tensor) -> Tensor:
        """See the base class."""
        start = time.perf_counter()
        parts = self._ranks.all_gather(part)
        self.seconds += time.perf_counter() - start
        return parts

    def broadcast(self, part: Tensor, root: int) -> Tensor:
        """See the base class."""
        start = time.perf_counter()
        found = self._ranks.broadcast(part, root)
        self.seconds += time.perf_counter() - start
        return found

    def neighbours(self, size: int) -> RankGroup:
        """See the base class; their collectives are not counted."""
        return self._ranks.neighbours(size)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the report."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description="Steps of a model on 1, 2 and 4 ranks.")
    for name, default in (("hidden", 512), ("layers", 6), ("chunk", 256), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"[default: {default}]")
    parser.add_argument("--rounds", type=int, default=30, help="[default: 30]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the report is written")
    args = parser.parse_args(arguments)
    plan = Plan(args.hidden, args.layers, args.chunk, args.batch, args.rounds)
    found = cells(run_ranks(max(SIZES), _rank, plan))
    heading = (
        f"`python -m benchmarks.rank_steps {shlex.join(arguments)}`\n\n{machine_line()}. "
        f"One thread a rank; {plan}.\n"
    )
    figures = {"cells": [asdict(cell) for cell in found]}
    Report(heading, as_markdown(found), figures, lambda: draw(found)).publish(args.out)
    return 0


def _rank(rank: int, size: int, folder: Path, plan: Plan) -> Times:
    torch.set_num_threads(1)
    fence = connect(rank, size, folder / "fence")
    arms = {
        each: _arm(plan, OneRank() if each == 1 else connect(rank, each, folder / str(each)))
        for each in SIZES
        if rank < each
    }
    found: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for number in range(_WARM_UP + plan.rounds):
        for each in SIZES:
            for phase in PHASES:
                fence.all_reduce(torch.ones(1, 1))
                if each in arms:
                    seconds = _time(*arms[each], _rows(plan, phase))
                    if number >= _WARM_UP:
                        found.setdefault((each, phase), []).append(seconds)
    fence.all_reduce(torch.ones(1, 1))
    return found


def _arm(plan: Plan, ranks: RankGroup) -> tuple[ModelRunner, TimedRanks]:
    timed, config = TimedRanks(ranks), plan.model
    placement = Placement(dtype=torch.float32, device=_CPU, ranks=timed)
    model = random_model(config, placement)
    layout = rank_layout(model_layout(config, BLOCK_SIZE, "float32", ranks.size), timed)
    blocks = 1 + plan.batch * (plan.chunk // BLOCK_SIZE + 1)
    return ModelRunner(model, layout, blocks, max(plan.chunk, plan.batch), _CPU), timed


def _rows(plan: Plan, phase: str) -> list[SequenceRows]:
    each = plan.chunk // BLOCK_SIZE + 1
    tables = [range(1 + i * each, 1 + (i + 1) * each) for i in range(plan.batch)]
    if phase == "prefill":
        return [SequenceRows(range(plan.chunk), 0, tables[0], samples=True)]
    return [SequenceRows([7], plan.chunk, table, samples=True) for table in tables]


def _time(runner: ModelRunner, ranks: TimedRanks, rows: list[SequenceRows]) -> tuple[float, float]:
    ranks.seconds, start = 0.0, time.perf_counter()
    runner.forward(rows)
    return time.perf_counter() - start, ranks.seconds


if __name__ == "__main__":
    raise SystemExit(main())
