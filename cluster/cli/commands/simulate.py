"""`twinflow simulate`: what a deployment would do under a load, without running it.

Step times come from a profile that `twinflow profile` measured, or from a description of a device
and a model's `config.json`. What the flags amount to is `twinflow.cluster.cli.simulation`; the
simulation itself is twinflow.cluster.simulator.
"""

import json
from pathlib import Path

from twinflow.cluster.cli.files import check_file, check_folder, check_picture, write_text
from twinflow.cluster.cli.flags import add_flag
from twinflow.cluster.cli.parser import Commands, Invocation, Parser
from twinflow.cluster.cli.simulation import SHARED_FLAGS, Arguments, build_config, build_workload
from twinflow.cluster.simulator.config import Partition
from twinflow.cluster.simulator.decisions import DecisionFolder
from twinflow.cluster.simulator.fleet import Fleet
from twinflow.cluster.simulator.measures import Objective
from twinflow.parallel.partition.record import Setup
from twinflow.protos.errors import ConfigError
from twinflow.runtime.cost.device import shipped_devices

EPILOG = """\
examples:
  twinflow simulate --profile model/twinflow-profile-cpu.json --rate 2 \\
      --input-tokens uniform:100:900 --output-tokens uniform:10:100
  twinflow simulate --device h100 --model llama-8b --deployment 2P6D --trace azure2023_conv.csv \\
      --slo ttft:500 --slo tpot:40 --plot outcome.png
  twinflow simulate --profile model/twinflow-profile-cpu.json --trace lengths.csv --rate 2 \\
      --deployment 1P1D --prefill-scheduler laps --decode-scheduler chunked
"""


def add_to(commands: Commands) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "simulate",
        help="predict latencies, goodput and use of a deployment",
        description="Run a deployment under virtual time: the schedulers, routers and queues that "
        "serve, with predicted step times.",
        epilog=EPILOG,
    )
    _add_device(parser)
    _add_workload(parser)
    _add_engine(parser)
    results = parser.add_argument_group("Results")
    results.add_argument("--json", metavar="FILE", help="write the figures there")
    results.add_argument("--plot", metavar="FILE", help="draw them there; needs matplotlib")
    parser.runs(run)


def _add_device(parser: Parser) -> None:
    group = parser.add_argument_group("Workers")
    group.add_argument("--profile", metavar="FILE", help="what `twinflow profile` wrote")
    names = ", ".join(shipped_devices())
    group.add_argument("--device", metavar="NAME", help=f"instead: {names}, or a JSON file")
    group.add_argument("--model", metavar="DIR", help="with --device: a folder with config.json")
    group.add_argument("--deployment", metavar="xPyDzM", help="workers of each role [default: 1M]")
    group.add_argument("--replicas", metavar="N", help="such deployments side by side [default: 1]")
    group.add_argument(
        "--kv-cache-memory", metavar="SIZE", help="of a worker [default: what the device has left]"
    )
    group.add_argument("--link", metavar="SIZE", help="bytes per second of a worker's link")
    group.add_argument(
        "--lanes",
        metavar="none|dynamic|N",
        help="two lanes on each mixed worker, divided by the controller or at N processors for "
        "prefill [default: none]",
    )


def _add_workload(parser: Parser) -> None:
    group = parser.add_argument_group("Load")
    group.add_argument("--trace", metavar="FILE", help="Azure CSV, Mooncake JSONL or lengths CSV")
    group.add_argument("--input-tokens", metavar="DIST", help="instead: fixed:N, uniform:A:B, ...")
    group.add_argument("--output-tokens", metavar="DIST", help="likewise")
    group.add_argument("--rate", metavar="N", help="requests per second, else the trace's times")
    group.add_argument(
        "--requests", metavar="N", help="how many; a trace is repeated [default: 1000]"
    )
    group.add_argument("--length-scale", metavar="X", help="factor on lengths [default: 1]")
    group.add_argument(
        "--max-tokens",
        metavar="N",
        help="what requests allow for outputs, which end as drawn [default: as drawn]",
    )
    group.add_argument("--seed", metavar="N", help="of what is drawn [default: 0]")
    group.add_argument(
        "--slo", metavar="MEASURE:MS", action="append", help="ttft, tpot, e2e or gap; repeatable"
    )


def _add_engine(parser: Parser) -> None:
    group = parser.add_argument_group("Engine, as for serve")
    group.add_argument("--max-model-len", metavar="N", help="[default: the KV memory]")
    for name in SHARED_FLAGS:
        add_flag(group, name)


def run(invocation: Invocation) -> int:
    """Simulate, print and write what came of it.

    Raises:
        ConfigError: an argument is wrong.
    """
    arguments = Arguments.of(invocation)
    figures, picture = arguments.path("json"), arguments.path("plot")
    if figures is not None:
        check_file("--json", figures)
    if picture is not None:
        check_picture("--plot", picture)
    workload = build_workload(arguments)
    config = build_config(arguments, workload)
    slo = invocation.given.get("slo", ())
    objectives = [Objective.parse(str(text)) for text in slo] if isinstance(slo, list) else []
    decisions = _decisions(arguments, config.partition)
    fleet = Fleet(config, objectives, decisions.write if decisions else None)
    if decisions is not None:
        decisions.open(worker.worker_id for worker in fleet.workers if worker.lanes is not None)
    fleet.run(workload)
    if decisions is not None:
        decisions.close()
    report = fleet.report()
    invocation.stdout.write("\n".join(report.lines()) + "\n")
    if figures is not None:
        write_text(figures, json.dumps(report.as_dict(), indent=1) + "\n")
    if picture is not None:
        _draw(fleet, picture)
    return 0


def _decisions(arguments: Arguments, partition: Partition | None) -> DecisionFolder | None:
    folder = arguments.path("lane_decisions")
    if folder is None or partition is None or partition.control is None:
        return None
    check_folder("--lane-decisions", folder)
    return DecisionFolder(folder, Setup(partition.control, partition.grid))


def _draw(fleet: Fleet, path: Path) -> None:
    try:
        # Loaded here because it needs matplotlib, which serving does not.
        from twinflow.cluster.simulator.plot import draw  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib") from error
    draw(fleet.measures, path)
