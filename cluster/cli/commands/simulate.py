"""`twinflow simulate`: what a deployment would do under a load, without running it.

Step times come from a profile that `twinflow profile` measured, or from a description of a device
and a model's `config.json`. The simulation itself is twinflow.cluster.simulator.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from twinflow.cluster.cli.files import write_text
from twinflow.cluster.cli.flags import flag_name, number_above_0
from twinflow.cluster.cli.parser import Commands, Invocation, Parser
from twinflow.cluster.cli.sources import report as complain
from twinflow.cluster.quantities import count, memory
from twinflow.cluster.simulator.config import Deployment, Link, Partition, SimulationConfig
from twinflow.cluster.simulator.fleet import Fleet
from twinflow.cluster.simulator.hardware import Hardware
from twinflow.cluster.simulator.lengths import Lengths
from twinflow.cluster.simulator.measures import Objective
from twinflow.cluster.simulator.traces import read_trace
from twinflow.cluster.simulator.workload import Workload
from twinflow.parallel.partition.layout import Grid
from twinflow.protos.errors import ConfigError
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.cost.device import load_device, shipped_devices
from twinflow.runtime.cost.lanes import LaneTimes
from twinflow.runtime.cost.profile import load_profile
from twinflow.runtime.cost.shape import ModelShape
from twinflow.runtime.lanes.options import LaneOptions
from twinflow.runtime.schedulers import AUTO, default_batched_tokens, resolve_scheduler

_BLOCK_SIZE = 16
# Flags that are fields of the engine's configuration.
_POLICIES = ("scheduler", "prefill_order", "admission")
_OBJECTIVES = ("tbt_objective", "ttft_objective")
_LIMITS = ("max_num_seqs", "max_num_batched_tokens")

EPILOG = """\
examples:
  twinflow simulate --profile model/twinflow-profile-cpu.json --rate 2 \\
      --input-tokens uniform:100:900 --output-tokens uniform:10:100
  twinflow simulate --device h100 --model llama-8b --deployment 2P6D --trace azure2023_conv.csv \\
      --slo ttft:500 --slo tpot:40 --plot outcome.png
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
    group.add_argument("--scheduler", metavar="NAME", help="[default: auto]")
    group.add_argument("--prefill-order", metavar="NAME", help="[default: fcfs]")
    group.add_argument("--admission", metavar="NAME", help="[default: aggressive]")
    group.add_argument("--tbt-objective-ms", metavar="MS", help="for policies that use it")
    group.add_argument("--ttft-objective-ms", metavar="MS", help="likewise")
    group.add_argument("--max-model-len", metavar="N", help="[default: the KV memory]")
    group.add_argument("--max-num-seqs", metavar="N", help="[default: 64]")
    group.add_argument(
        "--max-num-batched-tokens", metavar="N", help="[default: what suits the scheduler]"
    )
    group.add_argument("--block-size", metavar="N", help="[default: 16]")


def run(invocation: Invocation) -> int:
    """Simulate, print and write what came of it.

    Raises:
        ConfigError: an argument is wrong.
    """
    if invocation.complaints:
        raise ConfigError(complain(invocation.complaints))
    arguments = _Arguments(invocation)
    workload = _workload(arguments)
    config = _config(arguments, workload)
    slo = invocation.given.get("slo", ())
    objectives = [Objective.parse(str(text)) for text in slo] if isinstance(slo, list) else []
    fleet = Fleet(config, objectives)
    fleet.run(workload)
    report = fleet.report()
    invocation.stdout.write("\n".join(report.lines()) + "\n")
    if path := arguments.path("json"):
        write_text(path, json.dumps(report.as_dict(), indent=1) + "\n")
    if path := arguments.path("plot"):
        _draw(fleet, path)
    return 0


@dataclass(frozen=True, slots=True)
class _Arguments:
    """Reads values, with errors that name the flag."""

    invocation: Invocation

    def text(self, name: str) -> str | None:
        value = self.invocation.given.get(name)
        return None if value is None else str(value)

    def path(self, name: str) -> Path | None:
        value = self.text(name)
        return None if value is None else Path(value)

    def number(self, name: str) -> float | None:
        """A number above 0."""
        value = self.text(name)
        return None if value is None else number_above_0(name, value)

    def seconds(self, name: str) -> float | None:
        """A number of milliseconds above 0, in seconds."""
        value = self.number(name)
        return None if value is None else value / 1000.0

    def whole(self, name: str, default: int) -> int:
        """A whole number, at least 0; 32k is 32000, as for serve."""
        value = self.text(name)
        try:
            return default if value is None else count(value)
        except ValueError as error:
            raise ConfigError(f"{flag_name(name)} {value!r}: {error}") from error

    def memory(self, name: str) -> float | None:
        """Bytes, with a unit."""
        value = self.text(name)
        try:
            return None if value is None else float(memory(value))
        except ValueError as error:
            raise ConfigError(f"{flag_name(name)} {value!r}: {error}") from error


def _workload(arguments: _Arguments) -> Workload:
    trace = arguments.path("trace")
    lengths = [arguments.text(name) for name in ("input_tokens", "output_tokens")]
    inputs, outputs = (None if text is None else Lengths.parse(text) for text in lengths)
    return Workload(
        requests=arguments.whole("requests", 1000),
        shapes=() if trace is None else read_trace(trace),
        input_tokens=inputs,
        output_tokens=outputs,
        rate=arguments.number("rate"),
        length_scale=arguments.number("length_scale") or 1.0,
        max_tokens=arguments.whole("max_model_len", 0) or None,
        allowance=arguments.whole("max_tokens", 0) or None,
    )


def _hardware(arguments: _Arguments) -> Hardware:
    profile, device = arguments.path("profile"), arguments.text("device")
    if (profile is None) == (device is None):
        raise ConfigError("give --profile FILE, or --device NAME and --model DIR")
    if profile is not None:
        return Hardware.profiled(load_profile(profile))
    model = arguments.path("model")
    if model is None:
        raise ConfigError("--device needs --model DIR: a folder with the model's config.json")
    shape = ModelShape.of(load_model_config(model), element_bytes=2)
    return Hardware.described(load_device(device or ""), shape)


def _config(arguments: _Arguments, workload: Workload) -> SimulationConfig:
    hardware = _hardware(arguments)
    shape = hardware.times.shape
    token_bytes = shape.kv_bytes * shape.num_layers
    kv_bytes = arguments.memory("kv_cache_memory") or hardware.kv_bytes
    link = arguments.memory("link") or hardware.link_bytes_per_s
    try:
        engine = _engine(
            arguments,
            int(kv_bytes / token_bytes),
            caching=workload.shares_prefixes,
            has_experts=shape.num_experts > 0,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return SimulationConfig(
        deployment=Deployment.parse(
            arguments.text("deployment") or "1M", arguments.whole("replicas", 1)
        ),
        engine=engine,
        num_layers=shape.num_layers,
        token_bytes=token_bytes,
        times=LaneTimes(hardware.times, hardware.contention),
        link=Link(link),
        partition=_partition(arguments, hardware.grid),
        seed=arguments.whole("seed", 0),
    )


def _engine(
    arguments: _Arguments, kv_tokens: int, *, caching: bool, has_experts: bool
) -> EngineConfig:
    """The engine's defaults hold for what is not given, and `auto` means what it does for serve."""
    block_size = arguments.whole("block_size", _BLOCK_SIZE)
    num_blocks = kv_tokens // max(block_size, 1)
    given: dict[str, object] = {name: arguments.text(name) for name in _POLICIES}
    given |= {name: arguments.seconds(f"{name}_ms") for name in _OBJECTIVES}
    given |= {name: arguments.whole(name, 0) or None for name in _LIMITS}
    changes = {name: value for name, value in given.items() if value is not None}
    scheduler, _ = resolve_scheduler(str(changes.get("scheduler", AUTO)), has_experts=has_experts)
    longest = arguments.whole("max_model_len", (num_blocks - 1) * block_size)
    plain = EngineConfig(
        max_model_len=longest,
        num_blocks=num_blocks,
        block_size=block_size,
        enable_prefix_caching=caching,
    )
    seats = arguments.whole("max_num_seqs", plain.max_num_seqs)
    rows = default_batched_tokens(scheduler, longest, seats)
    # Each field is replaced by name, with a value of its own type.
    changes = {"max_num_batched_tokens": rows, **changes, "scheduler": scheduler}
    return replace(plain, **changes)  # type: ignore[arg-type]


def _partition(arguments: _Arguments, grid: Grid | None) -> Partition | None:
    lanes = arguments.text("lanes") or "none"
    if lanes == "none":
        return None
    if grid is None:
        raise ConfigError(
            "--lanes: one core cannot be divided, and neither can a device of which only the whole "
            "was measured"
        )
    if lanes == "dynamic":
        return Partition(grid, LaneOptions().control(grid), grid.middle)
    if not lanes.isdecimal() or int(lanes) not in grid.splits:
        raise ConfigError(
            f"--lanes {lanes}: use none, dynamic, or one of {', '.join(map(str, grid.splits))}"
        )
    return Partition(grid, None, grid.splits.index(int(lanes)))


def _draw(fleet: Fleet, path: Path) -> None:
    try:
        # Loaded here because it needs matplotlib, which serving does not.
        from twinflow.cluster.simulator.plot import draw  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib") from error
    draw(fleet.measures, path)
