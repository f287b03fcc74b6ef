"""The simulator against a real run: `python -m benchmarks.simulator RESULTS PROFILE`.

    twinflow profile MODEL --output profile.json
    twinflow serve MODEL --mixed 1 &
    python -m benchmarks.serve --url ... --rate 2 --requests 300 --out results/real
    python -m benchmarks.simulator results/real profile.json --deployment 1M

Every request of the load test comes again, at its time and with its lengths, in a simulation of the
deployment that served it; then medians and tails are compared. Exit status 1 if the median of TTFT
or of TBT is off by more than 15 %. Runs nothing but the simulation: the machine that was measured
must have been as quiet when the profile was taken as during the load test.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.load.stats import percentile
from benchmarks.reporting import markdown_table
from twinflow.cluster.simulator.config import Deployment, Link, SimulationConfig
from twinflow.cluster.simulator.fleet import Fleet
from twinflow.cluster.simulator.hardware import Hardware
from twinflow.cluster.simulator.measures import Measures
from twinflow.cluster.simulator.traces import Shape
from twinflow.cluster.simulator.workload import Workload
from twinflow.protos.errors import ConfigError
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.cost.lanes import LaneTimes
from twinflow.runtime.cost.profile import load_profile

TOLERANCE = 0.15
EXIT_UNUSABLE = 2
QUANTILES = (50.0, 90.0, 99.0)


@dataclass(frozen=True, slots=True)
class RealRun:
    """What a load test measured.

    Attributes:
        label: arm, rate and repeat.
        shapes: the requests that ended well, with their times.
        ttft: of each.
        gaps: between tokens, of all.
    """

    label: str
    shapes: Sequence[Shape]
    ttft: Sequence[float]
    gaps: Sequence[float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One percentile of one measure.

    Attributes:
        measure: `TTFT` or `TBT`.
        q: which percentile.
        real: measured, in seconds.
        simulated: in seconds.
    """

    measure: str
    q: float
    real: float
    simulated: float

    @property
    def error(self) -> float:
        """How far off the simulation is, as a part of what was measured."""
        return self.simulated / self.real - 1.0

    @property
    def holds(self) -> bool:
        """Whether this is a median that is off by no more than it may be; tails may be."""
        return self.q != QUANTILES[0] or abs(self.error) <= TOLERANCE


def read_runs(folder: Path) -> list[RealRun]:
    """The runs of a folder that `benchmarks.serve --out` wrote.

    Raises:
        ConfigError: there are none.
    """
    try:
        lines = (folder / "requests.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"{folder}/requests.jsonl cannot be read: {error}") from error
    rows: dict[str, list[dict[str, object]]] = {}
    for line in lines:
        row = json.loads(line)
        if row["outcome"] == "ok" and row["token_times_s"]:
            rows.setdefault(row["run"], []).append(row)
    if not rows:
        raise ConfigError(f"{folder}/requests.jsonl has no request that ended well")
    return [_real_run(label, found) for label, found in rows.items()]


def _real_run(label: str, rows: Iterable[dict[str, object]]) -> RealRun:
    shapes: list[Shape] = []
    ttft: list[float] = []
    gaps: list[float] = []
    for row in sorted(rows, key=lambda row: float(str(row["due_s"]))):
        due, times = float(str(row["due_s"])), row["token_times_s"]
        if not isinstance(times, list):
            raise ConfigError(f"{label}: token_times_s is no list")
        shapes.append(Shape(int(str(row["input_tokens"])), int(str(row["tokens"])), due))
        ttft.append(times[0] - due)
        gaps.extend(b - a for a, b in pairwise(times))
    return RealRun(label, shapes, ttft, gaps)


def compare(run: RealRun, measures: Measures) -> list[Comparison]:
    """Percentiles of a run and of its simulation."""
    found = []
    for q in QUANTILES:
        simulated = percentile(sorted(measures.ttft), q)
        found.append(Comparison("TTFT", q, percentile(sorted(run.ttft), q), simulated))
    for q in QUANTILES:
        gap = measures.gaps.percentile(q)
        if run.gaps and gap is not None:
            found.append(Comparison("TBT", q, percentile(sorted(run.gaps), q), gap))
    return found


def simulate(run: RealRun, config: SimulationConfig) -> Measures:
    """The same requests, at the same times."""
    return Fleet(config).run(Workload(len(run.shapes), run.shapes))


def config_of(arguments: argparse.Namespace) -> SimulationConfig:
    """The deployment that flags describe; see `parse`."""
    hardware = Hardware.profiled(load_profile(arguments.profile))
    shape = hardware.times.shape
    token_bytes = shape.kv_bytes * shape.num_layers
    num_blocks = int(arguments.kv_cache_memory / token_bytes) // arguments.block_size
    return SimulationConfig(
        deployment=Deployment.parse(arguments.deployment),
        engine=EngineConfig(
            max_model_len=(num_blocks - 1) * arguments.block_size,
            num_blocks=num_blocks,
            block_size=arguments.block_size,
            max_num_seqs=arguments.max_num_seqs,
            max_num_batched_tokens=arguments.max_num_batched_tokens,
            scheduler=arguments.scheduler,
            enable_prefix_caching=False,
        ),
        num_layers=shape.num_layers,
        token_bytes=token_bytes,
        times=LaneTimes(hardware.times),
        link=Link(hardware.link_bytes_per_s),
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulator")
    add = parser.add_argument
    add("results", type=Path, help="folder of --out of benchmarks.serve")
    add("profile", type=Path, help="what `twinflow profile` wrote on the same machine")
    add("--deployment", default="1M", help="what served, as for `twinflow simulate`")
    add("--kv-cache-memory", type=int, default=1 << 30, help="bytes, of each worker")
    add("--block-size", type=int, default=16)
    add("--max-num-seqs", type=int, default=64)
    add("--max-num-batched-tokens", type=int, default=1024)
    add("--scheduler", default="chunked")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; returns the exit status."""
    arguments = parse(argv)
    try:
        table, holds = table_of(read_runs(arguments.results), config_of(arguments))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_UNUSABLE
    sys.stdout.write(table)
    return 0 if holds else 1


def table_of(runs: Sequence[RealRun], config: SimulationConfig) -> tuple[str, bool]:
    """A table of all runs with a verdict below it, and the verdict."""
    found = [(run.label, each) for run in runs for each in compare(run, simulate(run, config))]
    heads = ("run", "measure", "percentile", "real ms", "simulated ms", "error")
    rows = [
        (
            label,
            each.measure,
            f"p{each.q:g}",
            f"{1000 * each.real:.2f}",
            f"{1000 * each.simulated:.2f}",
            f"{each.error:+.1%}",
        )
        for label, each in found
    ]
    holds = all(each.holds for _, each in found)
    verdict = f"medians within {TOLERANCE:.0%}: {'yes' if holds else 'no'}\n"
    return f"{markdown_table(heads, rows)}\n{verdict}", holds


if __name__ == "__main__":
    raise SystemExit(main())
