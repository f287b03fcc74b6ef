"""The simulator against a real engine in this process: `python -m benchmarks.engine_replay MODEL`.

Measures the model's steps, fits the cost model, then runs the engine on drawn requests and
simulates the same ones. The engine's steps are real, on a time line of their own
(`benchmarks.replay`). With `--cpu-time` it is the CPU time of this process, with one thread, and
so nearly independent of what else the machine does: the one comparison that a shared machine
allows. Front doors, processes and the network are not part of it; `benchmarks.simulator` has them.
Exit status 1 if the median of TTFT or of TBT is off by more than 15 %.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.replay import Arrivals, Clock, Replay, Timeline
from benchmarks.simulator import QUANTILES, TOLERANCE, RealRun, compare, simulate
from twinflow.cluster.simulator.config import Deployment, Link, SimulationConfig
from twinflow.cluster.simulator.lengths import Lengths
from twinflow.cluster.simulator.traces import Shape
from twinflow.cluster.simulator.workload import Workload
from twinflow.runtime.build import BuiltEngine, build_engine
from twinflow.runtime.cost.fit import Accuracy, fit_model
from twinflow.runtime.cost.lanes import LaneTimes
from twinflow.runtime.cost.measure import measure
from twinflow.runtime.cost.model import CostModel
from twinflow.runtime.engine_plan import EngineOptions


def run_engine(built: BuiltEngine, arrivals: Arrivals, timeline: Timeline) -> RealRun:
    """Serve requests on a time line."""
    found = Replay(built.engine, arrivals, timeline, built.model.vocab_size).run()
    shapes = [Shape(shape.input_tokens, shape.output_tokens, at) for at, shape in arrivals]
    return RealRun("engine", shapes, found.ttft, found.gaps)


def simulation_of(built: BuiltEngine, times: CostModel) -> SimulationConfig:
    """A deployment of nothing but this engine."""
    return SimulationConfig(
        deployment=Deployment({"mixed": 1}),
        engine=built.config,
        num_layers=built.model.num_layers,
        token_bytes=times.shape.kv_bytes * times.shape.num_layers,
        times=LaneTimes(times),
        link=Link(1.0),
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_replay")
    add = parser.add_argument
    add("model", type=Path)
    add("--threads", type=int, default=1)
    add("--cpu-time", action="store_true", help="this process's CPU time instead of the clock's")
    add("--seconds", type=float, default=10.0, help="to measure steps")
    add("--requests", type=int, default=60)
    add("--input-tokens", type=Lengths.parse, default=Lengths("uniform", (16, 400)))
    add("--output-tokens", type=Lengths.parse, default=Lengths("uniform", (8, 48)))
    add("--load", type=float, default=0.7, help="part of the rate at which the engine is full")
    add("--scheduler", default="chunked")
    add("--max-num-batched-tokens", type=int, default=256)
    add("--max-num-seqs", type=int, default=16)
    add("--max-model-len", type=int, default=1024)
    return parser.parse_args(argv)


def _full_rate(config: SimulationConfig, arguments: argparse.Namespace) -> float:
    """Requests per second of a simulation in which all of them come at once."""
    workload = _workload(arguments, 1e6)
    shapes = [Shape(s.input_tokens, s.output_tokens, 0.0) for _, s in workload.arrivals(0)]
    run = RealRun("all at once", shapes, (), ())
    return len(shapes) / simulate(run, config).end_s


def _workload(arguments: argparse.Namespace, rate: float) -> Workload:
    return Workload(
        arguments.requests,
        input_tokens=arguments.input_tokens,
        output_tokens=arguments.output_tokens,
        rate=rate,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, serve, simulate, compare; returns the exit status."""
    arguments = _parse(argv)
    clock: Clock = time.process_time if arguments.cpu_time else time.perf_counter
    options = EngineOptions(
        model=arguments.model,
        max_num_batched_tokens=arguments.max_num_batched_tokens,
        max_num_seqs=arguments.max_num_seqs,
        max_model_len=arguments.max_model_len,
        enable_prefix_caching=False,
        scheduler=arguments.scheduler,
    )
    measured = measure(
        options,
        threads=arguments.threads,
        seconds=arguments.seconds,
        progress=lambda part: None,
        clock=clock,
    )
    times = fit_model(measured.shape, measured.fitting)
    held_out = Accuracy.of(times, measured.checking)
    write = sys.stdout.write
    write(f"held-out steps: error {held_out.median:.1%} median, {held_out.p95:.1%} p95\n")
    timeline = Timeline(clock)
    built = build_engine(options, clock=timeline)
    config = simulation_of(built, times)
    rate = arguments.load * _full_rate(config, arguments)
    arrivals = list(_workload(arguments, rate).arrivals(0))
    run = run_engine(built, arrivals, timeline)
    found = compare(run, simulate(run, config))
    write(f"{len(arrivals)} requests at {rate:.3g} per second\n")
    for each in found:
        write(
            f"{each.measure:<5} p{each.q:<4g} real {1000 * each.real:9.2f} ms  simulated "
            f"{1000 * each.simulated:9.2f} ms  {each.error:+.1%}\n"
        )
    holds = all(each.holds for each in found)
    write(f"p{QUANTILES[0]:g} within {TOLERANCE:.0%}: {'yes' if holds else 'no'}\n")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
