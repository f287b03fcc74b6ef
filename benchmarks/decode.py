"""Decode and prefill of one process on a CPU: `python -m benchmarks.decode MODEL --out DIR`.

Arms: twinflow with native and with torch kernels, and transformers' `generate`; all in float32,
with the same prompts and numbers of tokens, greedy. They take turns within each round. Times are
CPU seconds of this process with one thread, which others who want the core do not lengthen, though
they do share its caches and memory with it. Prompt tokens per second are those of one prompt with
one token generated; decode tokens per second are what further tokens add to that.

Writes report.md (the table), report.json and report.png. Checks no results: tests do.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from matplotlib.figure import Figure

from benchmarks.load.spread import Spread, ratios, spread
from benchmarks.reporting import Report, error_bars, machine_line, markdown_table, new_figure
from twinflow.runtime.kernels.native_linear import PanelMemory
from twinflow.runtime.llm import LLM
from twinflow.runtime.sampling_params import SamplingParams

_BANDWIDTH_BYTES = 512 << 20
_DECODE_PROMPT = 16

# Generate so many tokens for each of the prompts.
Arm = Callable[[list[list[int]], int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        batches: sequences that decode together.
        prompts: tokens of the prompt.
        tokens: further tokens of each sequence.
        rounds: of all arms.
    """

    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    tokens: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm and one size.

    Attributes:
        arm: its name.
        phase: `decode` or `prefill`.
        size: sequences, or tokens of the prompt.
        rate: tokens per CPU second.
        ratio: to the rate of transformers in the same round.
    """

    arm: str
    phase: str
    size: int
    rate: Spread
    ratio: Spread


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the report."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description="Decode and prefill of one process on a CPU.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the report is written")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plan = Plan(tuple(args.batches), tuple(args.prompts), args.tokens, args.rounds)
    bandwidth, found = _read_bandwidth(), measure(_arms(args.model, plan), plan)
    heading = (
        f"`python -m benchmarks.decode {shlex.join(arguments)}`\n\n{machine_line()}, "
        f"transformers {transformers.__version__}. One thread, which "
        f"reads {bandwidth / 1e9:.1f} GB/s; load average {os.getloadavg()[0]:.1f}. {plan}.\n"
    )
    figures = {"bandwidth": bandwidth, "cells": [asdict(cell) for cell in found]}
    Report(heading, as_markdown(found), figures, lambda: draw(found)).publish(args.out)
    return 0


def measure(arms: Mapping[str, Arm], plan: Plan) -> list[Cell]:
    """Tokens per second of every arm and size; the last arm is the one to compare with."""
    sizes = [("decode", size) for size in plan.batches]
    sizes += [("prefill", size) for size in plan.prompts]
    rates: dict[tuple[str, str, int], list[float]] = {}
    for number in range(plan.rounds + 1):
        for phase, size in sizes:
            for name, arm in arms.items():
                rate = _RATES[phase](arm, size, plan.tokens)
                if number:  # the first round warms up
                    rates.setdefault((name, phase, size), []).append(rate)
    base = list(arms)[-1]
    return [
        Cell(
            name,
            phase,
            size,
            spread(rates[name, phase, size]),
            ratios(rates[name, phase, size], rates[base, phase, size]),
        )
        for phase, size in sizes
        for name in arms
    ]


def as_markdown(found: Sequence[Cell]) -> str:
    """The table: medians, and the range of the rounds in brackets."""
    rows = [
        (cell.phase, str(cell.size), cell.arm, cell.rate.text(0), cell.ratio.text())
        for cell in found
    ]
    return markdown_table(("phase", "size", "arm", "tokens/s", "of transformers"), rows)


def draw(found: Sequence[Cell]) -> Figure:
    """Tokens per second by size, with the range of the rounds."""
    figure = new_figure(9, 4)
    names = {"decode": "sequences", "prefill": "tokens of the prompt"}
    for axes, (phase, label) in zip(figure.subplots(1, 2), names.items(), strict=True):
        for arm in dict.fromkeys(cell.arm for cell in found):
            own = [cell for cell in found if (cell.arm, cell.phase) == (arm, phase)]
            error_bars(axes, [c.size for c in own], [c.rate for c in own], label=arm)
        axes.set(title=phase, xlabel=label, ylabel="tokens per CPU second", xscale="log")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
    return figure


def _arms(model: Path, plan: Plan) -> dict[str, Arm]:
    return {
        "twinflow, native": _twinflow(model, "native", plan),
        "twinflow, torch": _twinflow(model, "torch", plan),
        "transformers": _transformers(model),
    }


def _twinflow(model: Path, kernels: str, plan: Plan) -> Arm:
    llm = LLM(
        str(model),
        dtype="float32",
        cpu_kernels=kernels,
        enable_prefix_caching=False,
        max_num_batched_tokens=max(1024, *plan.prompts),
    )

    def generate(prompts: list[list[int]], count: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        llm.generate(prompts, params, use_tqdm=False)

    return generate


def _transformers(model: Path) -> Arm:
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def generate(prompts: list[list[int]], count: int) -> None:
        ids = torch.tensor(prompts)
        loaded.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )

    return generate


def _decode_rate(arm: Arm, batch: int, tokens: int) -> float:
    prompts = [
        [3 + sequence + place for place in range(_DECODE_PROMPT)] for sequence in range(batch)
    ]
    first = _seconds(arm, prompts, 1)
    return batch * tokens / max(1e-9, _seconds(arm, prompts, 1 + tokens) - first)


def _prefill_rate(arm: Arm, length: int, tokens: int) -> float:
    return length / _seconds(arm, [[3 + place % 100 for place in range(length)]], 1)


_RATES: dict[str, Callable[[Arm, int, int], float]] = {
    "decode": _decode_rate,
    "prefill": _prefill_rate,
}


def _seconds(arm: Arm, prompts: list[list[int]], count: int) -> float:
    start = time.process_time()
    arm(prompts, count)
    return time.process_time() - start


def _read_bandwidth() -> float:
    """Bytes that a thread reads in a CPU second, in large pages as weights are."""
    memory = PanelMemory().take(_BANDWIDTH_BYTES).fill_(1).view(torch.float32)
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        torch.sum(memory)
        best = min(best, time.process_time() - start)
    return _BANDWIDTH_BYTES / best


if __name__ == "__main__":
    sys.exit(main())
