"""The simulator against a real engine in this process: `python -m benchmarks.engine_replay MODEL`.

Runs the engine on drawn requests and simulates the same ones. The engine's steps are real, on a
time line of their own (`benchmarks.replay`); after each of them a step is measured that the cost
model is fitted to, over the same weights. So both sides see the same machine, whatever else it
does. With `--cpu-time` time is the CPU time of this process, with one thread: the one comparison
that a shared machine allows, though others who use its caches and its memory make steps dearer in
CPU time, too. At a given rate that counts twice, because slower steps also gather more requests.
Front doors, processes and the network are not part of it; `benchmarks.simulator` has them.
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
from twinflow.parallel.ranks.base import OneRank
from twinflow.runtime.build import BuiltEngine, assemble_engine, find_times
from twinflow.runtime.cost.dividers import Threads, use_threads
from twinflow.runtime.cost.fit import Accuracy, fit_model
from twinflow.runtime.cost.lanes import LaneTimes
from twinflow.runtime.cost.measure import LEAST_ROUNDS, Rounds, Subject
from twinflow.runtime.cost.model import CostModel
from twinflow.runtime.engine_plan import EngineOptions, plan_engine
from twinflow.runtime.runner_loading import load_runner


def run_engine(
    built: BuiltEngine, arrivals: Arrivals, timeline: Timeline, rounds: Rounds | None = None
) -> RealRun:
    """Serve requests on a time line, and measure a step of `rounds` after each of theirs."""
    replay = Replay(built.engine, arrivals, timeline, built.model.vocab_size)
    while not replay.done:
        replay.step()
        if rounds is not None:
            rounds.advance()
    shapes = [Shape(shape.input_tokens, shape.output_tokens, at) for at, shape in arrivals]
    return RealRun("engine", shapes, replay.latencies.ttft, replay.latencies.gaps)


def fitted(rounds: Rounds) -> CostModel:
    """The cost model of what was measured so far."""
    measured = rounds.measured()
    return fit_model(measured.shape, measured.fitting)


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
    ranks = OneRank()
    plan = plan_engine(options, ranks)
    use_threads(arguments.threads)
    runner = load_runner(plan, ranks)
    limits = plan.config
    beside = runner.apart(plan.rank_layout, limits.num_blocks, limits.max_num_batched_tokens)
    subject = Subject(plan, beside, beside.row_tile)
    timeline = Timeline(clock)
    built = assemble_engine(plan, runner, clock=timeline, times=find_times(plan))
    before = Rounds(subject, Threads(arguments.threads), clock=clock)
    before.advance_to(1)
    config = simulation_of(built, fitted(before))
    rate = arguments.load * _full_rate(config, arguments)
    arrivals = list(_workload(arguments, rate).arrivals(0))
    meanwhile = Rounds(subject, Threads(arguments.threads), clock=clock)
    run = run_engine(built, arrivals, timeline, meanwhile)
    meanwhile.advance_to(LEAST_ROUNDS)
    times = fitted(meanwhile)
    found = compare(run, simulate(run, simulation_of(built, times)))
    held_out = Accuracy.of(times, meanwhile.measured().checking)
    write = sys.stdout.write
    write(f"held-out steps: error {held_out.median:.1%} median, {held_out.p95:.1%} p95\n")
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
