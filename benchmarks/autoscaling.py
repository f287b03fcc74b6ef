"""Pools that size themselves next to fixed ones: `python -m benchmarks.autoscaling TRACE ...`.

The requests of a trace come at the trace's own times. One arm has pools that size themselves by
`--ttft-ms` and `--tpot-ms`, between one worker each and `--places` together, with which it begins;
each of the others
has a fixed number of prefill and of decode workers, every split of every total up to `--places`.
Controller, decisions, schedulers and routing are the objects that serve; steps take what the cost
model says of the device, workers take `--start-s` to start, and end when their requests have.

A device costs from when it is started until it has ended, whatever it does meanwhile. Goodput is
requests that met both objectives. What is compared is goodput for each device-hour, and beside it
the share of requests that met the objectives: few devices that are always too busy can be cheap.

Writes report.md (the table), report.json and report.png. Checks nothing: tests do.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.lanes.simulated import LLAMA_8B
from benchmarks.reporting import Report, markdown_table, new_figure
from twinflow.cluster.autoscale.policy import PoolPolicy
from twinflow.cluster.simulator.config import Deployment, Link, SimulationConfig
from twinflow.cluster.simulator.elastic import Elasticity, Staff, make_elastic
from twinflow.cluster.simulator.fleet import Fleet
from twinflow.cluster.simulator.hardware import Hardware
from twinflow.cluster.simulator.measures import Objective
from twinflow.cluster.simulator.traces import Shape, read_trace
from twinflow.cluster.simulator.workload import Workload
from twinflow.protos.twinflow.v1 import admin_pb2 as pb
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.cost.device import load_device
from twinflow.runtime.cost.lanes import LaneTimes
from twinflow.runtime.cost.shape import ModelShape
from twinflow.workers.role import Role

_BLOCK_SIZE = 16
_AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Question:
    """One arm on one trace.

    Attributes:
        trace: its file.
        requests: how many; None for all of the trace.
        skip: requests of the trace before the first one.
        device: name or file of its description.
        arm: `2P3D`, or `auto`.
        places: workers at most.
        ttft_ms: objective.
        tpot_ms: objective.
        start_s: until a worker serves.
    """

    trace: Path
    requests: int | None
    skip: int
    device: str
    arm: str
    places: int
    ttft_ms: float
    tpot_ms: float
    start_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an arm.

    Attributes:
        trace: name of its file.
        arm: `2P3D`, or `auto`.
        device_hours: of all workers.
        good: requests that met both objectives.
        attainment: share of all requests that did.
        per_device_hour: good requests for each device-hour.
        ttft_p90_ms: 90th percentile.
        tpot_p90_ms: 90th percentile.
        changes: decisions that gave a pool another size.
        flips: workers that changed their role.
        history: times in seconds, and workers of each role from then on.
    """

    trace: str
    arm: str
    device_hours: float
    good: int
    attainment: float
    per_device_hour: float
    ttft_p90_ms: float
    tpot_p90_ms: float
    changes: int
    flips: int
    history: Sequence[tuple[float, Mapping[Role, int]]]


def answer(question: Question) -> Outcome:
    """Simulate an arm."""
    shapes = starting_at(read_trace(question.trace), question.skip)
    workload = Workload(question.requests or len(shapes), shapes)
    config = _config(question, workload)
    slo = [Objective("ttft", question.ttft_ms), Objective("tpot", question.tpot_ms)]
    fleet = Fleet(config, slo)
    policies: dict[Role, PoolPolicy] = {
        "prefill": PoolPolicy(minimum=1, maximum=question.places, ttft_s=question.ttft_ms / 1000.0),
        "decode": PoolPolicy(minimum=1, maximum=question.places, tpot_s=question.tpot_ms / 1000.0),
    }
    elasticity = Elasticity(
        policies=policies if question.arm == _AUTO else {},
        places=question.places,
        start_s=question.start_s,
    )
    staff, chronicle = make_elastic(fleet, elasticity)
    fleet.run(workload)
    fleet.check_integrity()
    kinds = [event.kind for event in chronicle.since(0)]
    changes = kinds.count(pb.EVENT_KIND_AUTOSCALED), kinds.count(pb.EVENT_KIND_FLIPPED)
    return _outcome(question, fleet, staff, changes)


def starting_at(shapes: Sequence[Shape], skip: int) -> list[Shape]:
    """A trace from one of its requests on, which comes at 0 s."""
    left = shapes[skip:]
    began = (left[0].at_s or 0.0) if left else 0.0
    return [replace(shape, at_s=(shape.at_s or 0.0) - began) for shape in left]


def _config(question: Question, workload: Workload) -> SimulationConfig:
    shape = ModelShape.of(LLAMA_8B, element_bytes=2)
    hardware = Hardware.described(load_device(question.device), shape)
    token_bytes = shape.kv_bytes * shape.num_layers
    num_blocks = int(hardware.kv_bytes / token_bytes) // _BLOCK_SIZE
    half = question.places // 2
    first = f"{question.places - half}P{half}D" if question.arm == _AUTO else question.arm
    return SimulationConfig(
        deployment=Deployment.parse(first),
        engine=EngineConfig(
            max_model_len=(num_blocks - 1) * _BLOCK_SIZE,
            num_blocks=num_blocks,
            block_size=_BLOCK_SIZE,
            max_num_seqs=256,
            max_num_batched_tokens=2048,
            enable_prefix_caching=workload.shares_prefixes,
        ),
        num_layers=shape.num_layers,
        token_bytes=token_bytes,
        times=LaneTimes(hardware.times),
        link=Link(hardware.link_bytes_per_s),
    )


def _outcome(question: Question, fleet: Fleet, staff: Staff, changes: tuple[int, int]) -> Outcome:
    report, measures = fleet.report(), fleet.measures
    hours = staff.device_s(measures.end_s) / 3600.0
    return Outcome(
        trace=question.trace.stem,
        arm=question.arm,
        device_hours=hours,
        good=measures.good,
        attainment=report.attainment,
        per_device_hour=measures.good / hours,
        ttft_p90_ms=report.latencies["TTFT"].p90,
        tpot_p90_ms=report.latencies["TPOT"].p90,
        changes=changes[0],
        flips=changes[1],
        history=staff.history,
    )


def questions(args: argparse.Namespace) -> list[Question]:
    """Every arm on every trace."""
    totals = range(max(2, args.fewest), args.places + 1)
    ratios = [f"{n}P{total - n}D" for total in totals for n in range(1, total)]
    return [
        Question(
            trace=trace,
            requests=args.requests,
            skip=args.skip,
            device=args.device,
            arm=arm,
            places=args.places,
            ttft_ms=args.ttft_ms,
            tpot_ms=args.tpot_ms,
            start_s=args.start_s,
        )
        for trace in args.traces
        for arm in (_AUTO, *(ratios if args.arms is None else args.arms))
    ]


def as_markdown(found: Sequence[Outcome]) -> str:
    """The table: per trace the arm that sizes itself, then the others, best first."""
    heads = (
        "trace",
        "pools",
        "device-hours",
        "good requests",
        "attained",
        "good per device-hour",
        "next to auto",
        "TTFT p90, ms",
        "TPOT p90, ms",
        "changes",
        "flips",
    )
    rows = []
    for trace in dict.fromkeys(one.trace for one in found):
        own = [one for one in found if one.trace == trace]
        auto = next(one for one in own if one.arm == _AUTO)
        ordered = sorted(own, key=lambda one: (one is not auto, -one.per_device_hour))
        rows += [_row(one, auto) for one in ordered]
    return markdown_table(heads, rows)


def _row(one: Outcome, auto: Outcome) -> list[str]:
    return [
        one.trace,
        one.arm,
        f"{one.device_hours:.2f}",
        str(one.good),
        f"{one.attainment:.1%}",
        f"{one.per_device_hour:.0f}",
        f"{one.per_device_hour / auto.per_device_hour:.2f}",
        f"{one.ttft_p90_ms:.0f}",
        f"{one.tpot_p90_ms:.1f}",
        str(one.changes),
        str(one.flips),
    ]


def draw(found: Sequence[Outcome]) -> Figure:
    """A row for each trace: what arms cost and attain, and the sizes of pools over time."""
    traces = list(dict.fromkeys(one.trace for one in found))
    figure = new_figure(12, 3.6 * len(traces))
    rows = figure.subplots(len(traces), 2, squeeze=False)
    for trace, (costs, sizes) in zip(traces, rows, strict=True):
        own = [one for one in found if one.trace == trace]
        _draw_costs(costs, own)
        auto = next(one for one in own if one.arm == _AUTO)
        roles: tuple[Role, ...] = ("prefill", "decode")
        for role in roles:
            times = [time / 60.0 for time, _ in auto.history]
            counts = [workers.get(role, 0) for _, workers in auto.history]
            sizes.step(times, counts, where="post", label=role)
        sizes.set(title=f"{trace}: workers of auto", xlabel="min", ylim=(0, None))
        sizes.legend(loc="best", fontsize="small")
        sizes.grid(alpha=0.3)
    return figure


def _draw_costs(axes: Axes, own: Sequence[Outcome]) -> None:
    for one in own:
        mark = "r*" if one.arm == _AUTO else "b."
        axes.plot(100.0 * one.attainment, one.per_device_hour, mark)
        axes.annotate(one.arm, (100.0 * one.attainment, one.per_device_hour), fontsize="x-small")
    axes.set(
        title=f"{own[0].trace}: what fixed pools do, and auto",
        xlabel="requests that met the objectives, %",
        ylabel="good requests per device-hour",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, print the table, write the report."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description="Pools that size themselves next to fixed ones.")
    add = parser.add_argument
    add("traces", nargs="+", type=Path, help="Azure CSV or Mooncake JSONL")
    add("--requests", type=int, help="the first ones of each trace [default: all]")
    add("--skip", type=int, default=0, help="requests before the first one [default: 0]")
    add("--device", default="l4", help="name or file of its description [default: l4]")
    add("--places", type=int, default=8, help="workers at most [default: 8]")
    add("--fewest", type=int, default=2, help="workers of fixed arms at least [default: 2]")
    add("--arms", nargs="*", help="fixed arms instead, like 2P3D")
    add("--ttft-ms", type=float, default=1000.0, help="objective [default: 1000]")
    add("--tpot-ms", type=float, default=100.0, help="objective [default: 100]")
    add("--start-s", type=float, default=15.0, help="until a worker serves [default: 15]")
    add("--jobs", type=int, default=1, help="simulations at the same time [default: 1]")
    add("--out", type=Path, metavar="DIR", help="where the report is written")
    args = parser.parse_args(arguments)
    with ProcessPoolExecutor(args.jobs) as pool:
        found = list(pool.map(answer, questions(args)))
    heading = f"`python -m benchmarks.autoscaling {shlex.join(arguments)}`\n"
    figures = {"outcomes": [asdict(one) for one in found]}
    Report(heading, as_markdown(found), figures, lambda: draw(found)).publish(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
