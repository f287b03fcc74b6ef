"""Admission policies against each other, simulated: `python -m benchmarks.admission TRACE ...`.

    python -m benchmarks.admission azure2023_conv.csv
    python -m benchmarks.admission --input-tokens uniform:32:4096 --output-tokens uniform:2048:4096

The same requests come at the same times to one worker with each policy: past-future, aggressive,
conservative, and an oracle that knows how long outputs will be. Clients allow for more tokens than
they get, as most do. Schedulers and admission are the objects that serve; steps take what the
cost model says of the shipped H100.

What a policy that is too careful costs is memory that lies idle and requests that wait; what one
that is too bold costs is evictions: a request is preempted, and computed again later. Goodput is
requests a second that met `--slo`.

Writes report.md (the table), report.json and report.png. Checks nothing: tests do.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.lanes.simulated import LLAMA_8B
from benchmarks.reporting import Report, markdown_table, new_figure
from twinflow.cluster.simulator.config import Deployment, Link, SimulationConfig
from twinflow.cluster.simulator.fleet import Fleet
from twinflow.cluster.simulator.hardware import Hardware
from twinflow.cluster.simulator.lengths import Lengths
from twinflow.cluster.simulator.measures import Objective
from twinflow.cluster.simulator.traces import read_trace
from twinflow.cluster.simulator.workload import Workload
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.cost.device import load_device
from twinflow.runtime.cost.lanes import LaneTimes
from twinflow.runtime.cost.shape import ModelShape
from twinflow.runtime.request import Request
from twinflow.runtime.schedulers.admission import register_admission
from twinflow.runtime.schedulers.admission.past_future import peak_tokens
from twinflow.runtime.schedulers.base import SchedulerState

POLICIES = ("past-future", "aggressive", "conservative", "oracle")
_BLOCK_SIZE = 16


class Oracle:
    """Knows how long outputs will be: in simulations, exactly `min_tokens`."""

    def reserve(self, state: SchedulerState, holders: Sequence[Request], candidate: Request) -> int:
        """See `Admission.reserve`."""
        blocks, growing = state.blocks, (*holders, candidate)
        # Whole blocks, so that no request lacks one that the sum had counted in parts.
        own = np.array([blocks.blocks_for(r.num_tokens) for r in growing]) * blocks.block_size
        left = [r.params.min_tokens - len(r.output_token_ids) for r in growing]
        remaining = blocks.block_size * np.array([blocks.blocks_for(tokens) for tokens in left])
        return blocks.blocks_for(int(peak_tokens(own, remaining)) - int(own.sum()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One policy under one load.

    Attributes:
        trace: name of its file.
        rate: requests per second.
        policy: name.
        evictions: preemptions for each request.
        kv_use: share of the KV memory in use while the worker computed.
        goodput: requests per second that met all objectives.
        attainment: share of all requests that did.
        ttft_p50_s: seconds to the first token.
        ttft_p99_s: likewise.
        tpot_p99_ms: mean time of a later token.
    """

    trace: str
    rate: float
    policy: str
    evictions: float
    kv_use: float
    goodput: float
    attainment: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p99_ms: float


def simulate(workload: Workload, config: SimulationConfig, slo: Sequence[Objective]) -> Fleet:
    """Run to the end, and see that nothing is left."""
    fleet = Fleet(config, slo)
    fleet.run(workload)
    fleet.check_integrity()
    return fleet


def outcome(name: str, workload: Workload, fleet: Fleet, policy: str) -> Outcome:
    """Summarise a run."""
    report = fleet.report()
    ttft, tpot = report.latencies["TTFT"], report.latencies["TPOT"]
    return Outcome(
        trace=name,
        rate=workload.rate or 0.0,
        policy=policy,
        evictions=report.preemptions / workload.requests,
        kv_use=report.kv_use["mixed"],
        goodput=report.goodput,
        attainment=report.attainment,
        ttft_p50_s=ttft.p50 / 1000,
        ttft_p99_s=ttft.p99 / 1000,
        tpot_p99_ms=tpot.p99,
    )


def deployment(kv_bytes: float) -> SimulationConfig:
    """One H100 with Llama-3.1-8B, and so much memory for KV."""
    shape = ModelShape.of(LLAMA_8B, element_bytes=2)
    hardware = Hardware.described(load_device("h100"), shape)
    token_bytes = shape.kv_bytes * shape.num_layers
    num_blocks = int(kv_bytes / token_bytes) // _BLOCK_SIZE
    return SimulationConfig(
        deployment=Deployment({"mixed": 1}),
        engine=EngineConfig(
            max_model_len=min(32_768, (num_blocks - 1) * _BLOCK_SIZE),
            num_blocks=num_blocks,
            block_size=_BLOCK_SIZE,
            max_num_seqs=256,
            max_num_batched_tokens=1024,
            enable_prefix_caching=False,
        ),
        num_layers=shape.num_layers,
        token_bytes=token_bytes,
        times=LaneTimes(hardware.times),
        link=Link(hardware.link_bytes_per_s),
    )


def measure(args: argparse.Namespace) -> list[Outcome]:
    """Every policy under every load, one load after the other."""
    slo = [Objective.parse(text) for text in args.slo]
    config, found = deployment(args.kv_gib * 2**30), []
    for name, load in _loads(args, config.engine.max_model_len):
        for rate in args.rates:
            workload = replace(load, rate=rate)
            for policy in POLICIES:
                engine = replace(config.engine, admission=policy)
                fleet = simulate(workload, replace(config, engine=engine), slo)
                found.append(outcome(name, workload, fleet, policy))
            sys.stderr.write(f"{name} at {rate:g} requests a second\n")
    return found


def _loads(args: argparse.Namespace, longest: int) -> Iterator[tuple[str, Workload]]:
    """Names and workloads: the traces, and drawn lengths if they are asked for."""
    bounds = Workload(
        args.requests,
        input_tokens=args.input_tokens or Lengths.parse("fixed:1"),
        output_tokens=args.output_tokens or Lengths.parse("fixed:1"),
        rate=args.rates[0],
        max_tokens=longest,
        allowance=args.max_tokens,
    )
    for path in args.traces:
        yield (
            path.stem,
            replace(bounds, shapes=read_trace(path), input_tokens=None, output_tokens=None),
        )
    if args.input_tokens and args.output_tokens:
        yield "drawn lengths", bounds


def as_markdown(found: Sequence[Outcome]) -> str:
    """The table."""
    heads = (
        "trace",
        "requests/s",
        "admission",
        "evictions per request",
        "KV use",
        "goodput/s",
        "attained",
        "TTFT p50, s",
        "TTFT p99, s",
        "TPOT p99, ms",
    )
    return markdown_table(heads, [_row(one) for one in found])


def _row(one: Outcome) -> list[str]:
    return [
        one.trace,
        f"{one.rate:g}",
        one.policy,
        f"{one.evictions:.3f}",
        f"{one.kv_use:.1%}",
        f"{one.goodput:.2f}",
        f"{one.attainment:.1%}",
        f"{one.ttft_p50_s:.2f}",
        f"{one.ttft_p99_s:.2f}",
        f"{one.tpot_p99_ms:.1f}",
    ]


_PANELS: tuple[tuple[str, Callable[[Outcome], float]], ...] = (
    ("evictions per request", lambda one: one.evictions),
    ("KV use", lambda one: one.kv_use),
    ("goodput, requests/s", lambda one: one.goodput),
)


def draw(found: Sequence[Outcome]) -> Figure:
    """A row for each trace; what each policy makes of the rates."""
    traces = list(dict.fromkeys(one.trace for one in found))
    figure = new_figure(12, 3.4 * len(traces))
    rows = figure.subplots(len(traces), len(_PANELS), squeeze=False)
    for trace, row in zip(traces, rows, strict=True):
        for (title, of), axes in zip(_PANELS, row, strict=True):
            for policy in POLICIES:
                own = [one for one in found if (one.trace, one.policy) == (trace, policy)]
                style = ":" if policy == "oracle" else "-"
                axes.plot([one.rate for one in own], list(map(of, own)), style + "o", label=policy)
            axes.set(title=f"{trace}: {title}", xlabel="requests/s", ylim=(0, None))
            axes.grid(alpha=0.3)
        row[0].legend(loc="best", fontsize="small")
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, print the table, write the report."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description="Admission policies next to an oracle.")
    add = parser.add_argument
    add("traces", nargs="*", type=Path, help="Azure CSV, Mooncake JSONL or lengths CSV")
    add("--input-tokens", type=Lengths.parse, help="draw lengths of prompts, as twinflow simulate")
    add("--output-tokens", type=Lengths.parse, help="and of outputs")
    add("--rates", nargs="+", type=float, default=[4.0, 5.0, 6.0], help="requests per second")
    add("--requests", type=int, default=2000, help="of each run [default: 2000]")
    add("--max-tokens", type=int, default=2048, help="that clients allow for [default: 2048]")
    add("--kv-gib", type=float, default=8.0, help="memory for KV [default: 8]")
    add("--slo", nargs="+", default=["ttft:5000", "gap:500"], help="as of twinflow simulate")
    add("--out", type=Path, metavar="DIR", help="where the report is written")
    args = parser.parse_args(arguments)
    if not args.traces and not (args.input_tokens and args.output_tokens):
        parser.error("give a trace, or --input-tokens and --output-tokens")
    found = measure(args)
    heading = f"`python -m benchmarks.admission {shlex.join(arguments)}`\n"
    figures = {"outcomes": [asdict(one) for one in found]}
    Report(heading, as_markdown(found), figures, lambda: draw(found)).publish(args.out)
    return 0


def register_oracle() -> None:
    """Make the oracle available under its name; once in a process."""
    register_admission("oracle", lambda _: Oracle())


if __name__ == "__main__":
    register_oracle()
    raise SystemExit(main())
