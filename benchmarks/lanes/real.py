"""Runs arms in this process, one after the other, on a real model and this machine's cores.

One lane computes with all cores, two lanes have some each: the same engine, the same requests at
the same times, wall clock. A check of the mechanism: cores are no streaming multiprocessors, and
on two of them there is one way to divide.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.lanes.mixed import mixed
from benchmarks.lanes.simulated import Figures
from benchmarks.load.stats import percentile
from benchmarks.replay import Arrivals, Latencies, Replay, Timeline
from twinflow.cluster.simulator.traces import Shape
from twinflow.cluster.simulator.workload import Workload
from twinflow.protos.errors import ConfigError
from twinflow.runtime.build import BuiltEngine, build_engine
from twinflow.runtime.engine_plan import EngineOptions
from twinflow.runtime.lanes.options import LaneOptions


@dataclass(frozen=True, slots=True)
class RealArm:
    """A way to run both phases on this machine's cores.

    Attributes:
        name: in tables.
        chunk: rows of a step, before lengths are scaled.
        order: in which prompts are computed.
        lanes: name of what divides the cores.
    """

    name: str
    chunk: int
    order: str = "fcfs"
    lanes: str = "none"


BASE = RealArm("B chunked 1024", 1024)
REAL_ARMS = (
    BASE,
    RealArm("B chunked 512", 512),
    RealArm("B chunked 1024, SPF", 1024, "spf"),
    RealArm("F two lanes", 2048, "fcfs", "cores"),
    RealArm("G two lanes, SPF", 2048, "spf", "cores"),
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What all arms have in common.

    Attributes:
        model: directory of a checkpoint.
        cores: that arms may use.
        scale: factor on lengths and chunks.
        requests: of a run.
    """

    model: Path
    cores: tuple[int, ...]
    scale: float
    requests: int

    def arrivals(self, rate: float, seed: int) -> Arrivals:
        """Poisson arrivals of scaled requests."""
        shapes = mixed(self.requests, seed)
        workload = Workload(self.requests, shapes, rate=rate, length_scale=self.scale)
        return list(workload.arrivals(seed))

    def capacity(self, seed: int) -> float:
        """Requests per second that the base arm serves if all are there from the start."""
        shapes = [Shape(s.input_tokens, s.output_tokens, 0.0) for _, s in self.arrivals(1.0, seed)]
        return self.run(BASE, [(0.0, shape) for shape in shapes]).rate

    def run(self, arm: RealArm, arrivals: Arrivals) -> Figures:
        """Serve all requests; the arm has the machine to itself.

        Raises:
            ConfigError: the arm has one lane instead of two here.
        """
        torch.set_num_threads(len(self.cores))
        built = build_engine(self._options(arm), clock=time.monotonic)
        if built.lanes.backend != arm.lanes:
            raise ConfigError(f"{arm.name}: {built.lanes.reason}")
        try:
            self._warm(built)
            line = Timeline(time.monotonic)
            found = Replay(built.engine, arrivals, line, built.model.vocab_size).run()
            built.engine.check_integrity()
            lanes = built.engine.lane_figures
            return _figures(found, line.now, 0 if lanes is None else lanes.switches)
        finally:
            built.engine.close()

    def _warm(self, built: BuiltEngine) -> None:
        """Two requests at once, so that both lanes have computed."""
        shapes = [(0.0, Shape(64, 4, 0.0)), (0.0, Shape(200, 4, 0.0))]
        Replay(built.engine, shapes, Timeline(time.monotonic), built.model.vocab_size).run()

    def _options(self, arm: RealArm) -> EngineOptions:
        return EngineOptions(
            model=self.model,
            max_num_seqs=32,
            max_num_batched_tokens=max(32, round(arm.chunk * self.scale)),
            kv_cache_memory=1 << 28,
            enable_prefix_caching=False,
            scheduler="chunked",
            prefill_order=arm.order,
            lanes=LaneOptions(backend=arm.lanes, cores=self.cores),
        )


def _figures(found: Latencies, seconds: float, switches: int) -> Figures:
    ttft, gaps = sorted(found.ttft), sorted(found.gaps)
    return Figures(
        ttft_mean=1000 * _mean(ttft),
        ttft_p99=1000 * percentile(ttft, 99),
        tbt_mean=1000 * sum(gaps) / max(len(gaps), 1),
        tbt_p50=1000 * percentile(gaps, 50),
        tbt_p99=1000 * percentile(gaps, 99),
        e2e_mean=1000 * _mean(found.e2e),
        rate=len(found.e2e) / seconds,
        switches=switches,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
