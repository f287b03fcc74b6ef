"""How long a decision about the division of a device takes: `python -m benchmarks.partition`.

Random batches on the shipped H100, each decided from a random split (cold) and again from where
that led (settled). Times are CPU times of this thread, so that other processes do not count.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from benchmarks.load.machine import machine_facts
from benchmarks.load.stats import percentile
from twinflow.parallel.partition.control import ControlConfig, Inputs, Mode, Standing, decide
from twinflow.parallel.partition.layout import Grid
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.cost.base import PhaseLoad, SegmentLoad, StepLoad
from twinflow.runtime.cost.device import load_device
from twinflow.runtime.cost.forecast import StepForecast
from twinflow.runtime.cost.lanes import LaneTimes
from twinflow.runtime.cost.shape import ModelShape

LIMIT_US = 200.0
_INPUTS = Inputs(prefills=True, decodes=True, kv_use=0.3)


def forecasts(model: Path, count: int) -> list[StepForecast]:
    """Random pairs of batches of a model on an H100."""
    shape = ModelShape.of(load_model_config(model), element_bytes=2)
    device = load_device("h100")
    times, rng = LaneTimes(device.cost_model(shape)), Random(0)
    found = []
    for _ in range(count):
        prompt = PhaseLoad.of(rng.choice([0, 2048, 8192]), rng.choice([256, 1024, 2048]))
        batch, context = rng.randint(1, 128), rng.randint(16, 8192)
        decode = PhaseLoad(batch, batch * context, batch * context)
        layers = shape.num_layers
        prefill_step = StepLoad((SegmentLoad(layers, prompt, PhaseLoad()),), 1)
        decode_step = StepLoad((SegmentLoad(layers, PhaseLoad(), decode),), batch)
        found.append(StepForecast(times, prefill_step, decode_step))
    return found


def measure(pairs: Sequence[StepForecast], grid: Grid) -> dict[str, list[float]]:
    """Microseconds of every decision, sorted."""
    config, rng = ControlConfig(), Random(1)
    taken: dict[str, list[float]] = {"cold": [], "settled": []}
    for forecast in pairs:
        standing = Standing(Mode.PREFILL, rng.randrange(len(grid.splits)))
        for values in taken.values():
            began = time.thread_time()
            standing = decide(config, grid, standing, _INPUTS, forecast).after
            values.append(1e6 * (time.thread_time() - began))
    return {name: sorted(values) for name, values in taken.items()}


def within_limit(taken: Mapping[str, Sequence[float]]) -> bool:
    """Whether 95 of 100 decisions, cold and settled, take no longer than they may."""
    return all(percentile(values, 95) <= LIMIT_US for values in taken.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 1 if decisions take too long."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.partition")
    parser.add_argument("model", type=Path, help="a folder with config.json")
    parser.add_argument("--decisions", type=int, default=2000)
    arguments = parser.parse_args(argv)
    device = load_device("h100")
    grid = Grid.of(device.processors, device.processor_step, device.processor_step)
    taken = measure(forecasts(arguments.model, arguments.decisions), grid)
    sys.stdout.write(f"{machine_facts().get('cpu')}, {len(grid.splits)} splits\n")
    for name, values in taken.items():
        quantiles = ", ".join(f"p{q:g} {percentile(values, q):.0f} us" for q in (50, 95, 99))
        sys.stdout.write(f"{name:<8} {quantiles}\n")
    return int(not within_limit(taken))


if __name__ == "__main__":
    raise SystemExit(main())
