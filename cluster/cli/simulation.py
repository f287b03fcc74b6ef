"""What the flags of `twinflow simulate` amount to: a load, workers, and what they compute on.

Flags that `twinflow serve` has too are read and checked as it does, by its configuration; what they
mean for a pool is its business as well.
"""

from dataclasses import dataclass
from pathlib import Path

from twinflow.cluster.cli.flags import flag_name, number_above_0
from twinflow.cluster.cli.parser import Invocation
from twinflow.cluster.cli.sources import resolve
from twinflow.cluster.config import ServeConfig
from twinflow.cluster.dispatch.admission import AdmissionLimits
from twinflow.cluster.quantities import count, in_seconds, memory
from twinflow.cluster.simulator.config import Deployment, Link, Partition, SimulationConfig
from twinflow.cluster.simulator.hardware import Hardware
from twinflow.cluster.simulator.lengths import Lengths
from twinflow.cluster.simulator.traces import read_trace
from twinflow.cluster.simulator.workload import Workload
from twinflow.parallel.partition.layout import Grid
from twinflow.protos.errors import ConfigError
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.cost.device import load_device
from twinflow.runtime.cost.lanes import LaneTimes
from twinflow.runtime.cost.profile import load_profile
from twinflow.runtime.cost.shape import ModelShape
from twinflow.runtime.lanes.options import LaneOptions
from twinflow.runtime.schedulers import default_batched_tokens, resolve_scheduler
from twinflow.workers.role import Role

# Flags that say the same as for serve, help text and default included.
SHARED_FLAGS = (
    "scheduler", "prefill_scheduler", "decode_scheduler",
    "prefill_order", "prefill_prefill_order", "decode_prefill_order",
    "admission", "prefill_admission", "decode_admission",
    "tbt_objective_ms", "ttft_objective_ms", "max_ttft_ms",
    "prefill_slack", "decode_slack", "lane_decisions",
    "max_num_seqs", "max_num_batched_tokens", "block_size",
)  # fmt: skip
# Read as for serve; what holds without them is something else.
_READ_ALIKE = ("max_model_len", "kv_cache_memory")
# What a controller of lanes goes by, or writes.
_OF_LANES = ("prefill_slack", "decode_slack", "lane_decisions")
# The configuration is asked about every pool, whichever there are.
_POOLS: dict[str, object] = {"model": "simulated", "prefill": 1, "decode": 1, "mixed": 1}


@dataclass(frozen=True, slots=True)
class Arguments:
    """Reads values, with errors that name the flag.

    Attributes:
        invocation: of the command.
        serve: what the flags that serve has too amount to there.
    """

    invocation: Invocation
    serve: ServeConfig

    @classmethod
    def of(cls, invocation: Invocation) -> "Arguments":
        """The arguments of a call.

        Raises:
            ConfigError: a flag does not exist, or one that serve has too is wrong.
        """
        given = invocation.given
        shared = {name: given[name] for name in (*SHARED_FLAGS, *_READ_ALIKE) if name in given}
        return cls(invocation, resolve(shared | _POOLS, {}, invocation.complaints))

    def text(self, name: str) -> str | None:
        """As it was written; None if it was not."""
        value = self.invocation.given.get(name)
        return None if value is None else str(value)

    def path(self, name: str) -> Path | None:
        """A file or folder."""
        value = self.text(name)
        return None if value is None else Path(value)

    def number(self, name: str) -> float | None:
        """A number above 0."""
        value = self.text(name)
        return None if value is None else number_above_0(name, value)

    def whole(self, name: str, least: int = 1) -> int | None:
        """A whole number; 32k is 32000, as for serve."""
        value = self.text(name)
        if value is None:
            return None
        try:
            found = count(value)
        except ValueError as error:
            raise ConfigError(f"{flag_name(name)} {value!r}: {error}") from error
        if found < least:
            raise ConfigError(f"{flag_name(name)} {value!r}: must be at least {least}")
        return found

    def bytes_per_s(self, name: str) -> float | None:
        """Bytes, with a unit."""
        value = self.text(name)
        try:
            found = None if value is None else float(memory(value))
        except ValueError as error:
            raise ConfigError(f"{flag_name(name)} {value!r}: {error}") from error
        if found == 0.0:
            raise ConfigError(f"{flag_name(name)} {value!r}: must be above 0")
        return found


def build_workload(arguments: Arguments) -> Workload:
    """The load.

    Raises:
        ConfigError: an argument is wrong.
    """
    trace = arguments.path("trace")
    lengths = [arguments.text(name) for name in ("input_tokens", "output_tokens")]
    inputs, outputs = (None if text is None else Lengths.parse(text) for text in lengths)
    return Workload(
        requests=arguments.whole("requests") or 1000,
        shapes=() if trace is None else read_trace(trace),
        input_tokens=inputs,
        output_tokens=outputs,
        rate=arguments.number("rate"),
        length_scale=arguments.number("length_scale") or 1.0,
        max_tokens=arguments.serve.max_model_len,
        allowance=arguments.whole("max_tokens"),
    )


def build_config(arguments: Arguments, workload: Workload) -> SimulationConfig:
    """The deployment.

    Raises:
        ConfigError: an argument is wrong, or a file that one names.
    """
    deployment = Deployment.parse(
        arguments.text("deployment") or "1M", arguments.whole("replicas") or 1
    )
    _check_pools(arguments, deployment)
    hardware = _hardware(arguments)
    shape = hardware.times.shape
    token_bytes = shape.kv_bytes * shape.num_layers
    kv_bytes = arguments.serve.kv_cache_memory or hardware.kv_bytes
    kinds = _Engines(
        serve=arguments.serve,
        kv_tokens=int(kv_bytes / token_bytes),
        caching=workload.shares_prefixes,
        has_experts=shape.num_experts > 0,
    )
    try:
        engines = {role: kinds.engine(role) for role, number in deployment.pools.items() if number}
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return SimulationConfig(
        deployment=deployment,
        engine=next(iter(engines.values())),
        engines=engines,
        num_layers=shape.num_layers,
        token_bytes=token_bytes,
        times=LaneTimes(hardware.times),
        link=Link(arguments.bytes_per_s("link") or hardware.link_bytes_per_s),
        partition=_partition(arguments, hardware.grid),
        admission=AdmissionLimits(longest_wait_s=in_seconds(arguments.serve.max_ttft_ms)),
        seed=arguments.whole("seed", 0) or 0,
    )


def _check_pools(arguments: Arguments, deployment: Deployment) -> None:
    """Refuse what is said of workers that there are none of, or of lanes that nobody has."""
    roles: tuple[Role, ...] = ("prefill", "decode")
    own = ("scheduler", "prefill_order", "admission")
    wanted: dict[str, Role] = {f"{role}_{name}": role for role in roles for name in own}
    if (arguments.text("lanes") or "none") != "none":
        wanted["lanes"] = "mixed"
    for name, role in wanted.items():
        if arguments.text(name) is not None and not deployment.pools.get(role):
            raise ConfigError(f"{flag_name(name)}: --deployment has no {role} worker")
    if arguments.text("lanes") != "dynamic":
        for name in _OF_LANES:
            if arguments.text(name) is not None:
                raise ConfigError(f"{flag_name(name)}: nothing is decided without --lanes dynamic")


def _hardware(arguments: Arguments) -> Hardware:
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


@dataclass(frozen=True, slots=True)
class _Engines:
    """Makes the engines of pools: what is not given is as for serve, `auto` included.

    Attributes:
        serve: what was given.
        kv_tokens: that a worker's memory holds.
        caching: whether prompts begin alike.
        has_experts: whether the model has.
    """

    serve: ServeConfig
    kv_tokens: int
    caching: bool
    has_experts: bool

    def engine(self, role: Role) -> EngineConfig:
        """The engine of a worker of a pool.

        Raises:
            ValueError: the limits do not go together.
        """
        serve = self.serve
        num_blocks = self.kv_tokens // serve.block_size
        longest = serve.max_model_len or (num_blocks - 1) * serve.block_size
        scheduler, _ = resolve_scheduler(serve.scheduler_of(role), has_experts=self.has_experts)
        rows = default_batched_tokens(scheduler, longest, serve.max_num_seqs)
        return EngineConfig(
            max_model_len=longest,
            num_blocks=num_blocks,
            block_size=serve.block_size,
            max_num_seqs=serve.max_num_seqs,
            max_num_batched_tokens=serve.max_num_batched_tokens or rows,
            enable_prefix_caching=self.caching,
            scheduler=scheduler,
            prefill_order=serve.prefill_order_of(role),
            admission=serve.admission_of(role),
            tbt_objective=in_seconds(serve.tbt_objective_ms),
            ttft_objective=in_seconds(serve.ttft_objective_ms),
        )


def _partition(arguments: Arguments, grid: Grid | None) -> Partition | None:
    lanes = arguments.text("lanes") or "none"
    if lanes == "none":
        return None
    if grid is None:
        raise ConfigError(
            "--lanes: one core cannot be divided, nor a device with fewer processors than two "
            "parts have at least, nor one of which only the whole was measured"
        )
    if lanes == "dynamic":
        slacks = LaneOptions(
            prefill_slack=arguments.serve.prefill_slack, decode_slack=arguments.serve.decode_slack
        )
        return Partition(grid, slacks.control(grid), grid.middle)
    if not lanes.isdecimal() or int(lanes) not in grid.splits:
        raise ConfigError(
            f"--lanes {lanes}: use none, dynamic, or one of {', '.join(map(str, grid.splits))}"
        )
    return Partition(grid, None, grid.splits.index(int(lanes)))
