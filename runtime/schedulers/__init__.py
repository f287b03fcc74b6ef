"""Scheduling policies by name."""

from collections.abc import Callable

from twinflow.protos.errors import ConfigError
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.schedulers.base import Scheduler
from twinflow.runtime.schedulers.chunked import ChunkedScheduler
from twinflow.runtime.schedulers.laps import LengthAwareScheduler
from twinflow.runtime.schedulers.layered import LayeredScheduler
from twinflow.runtime.schedulers.setup import SchedulerSetup

AUTO = "auto"
# Rows of a step by default; see `default_batched_tokens`.
_CHUNK_ROWS = 1024
_WAVE_ROWS = 8192

_POLICIES: dict[str, Callable[[SchedulerSetup], Scheduler]] = {}


def register_scheduler(name: str, build: Callable[[SchedulerSetup], Scheduler]) -> None:
    """Make a policy available under a name; a name can be taken only once."""
    if name in _POLICIES or name == AUTO:
        raise ValueError(f"a scheduler named {name!r} is already registered")
    _POLICIES[name] = build


def create_scheduler(name: str, setup: SchedulerSetup) -> Scheduler:
    """Build the policy with this name.

    Raises:
        ConfigError: there is none.
    """
    build = _POLICIES.get(name)
    if build is None:
        choices = sorted((AUTO, *_POLICIES))
        raise ConfigError(f"--scheduler {name}: unknown; choose one of {choices}")
    return build(setup)


def check_policies(config: EngineConfig) -> None:
    """Refuse names of policies that nobody knows.

    Raises:
        ConfigError: there is one.
    """
    setup = SchedulerSetup.of(config, num_layers=1)
    create_scheduler(config.scheduler, setup)


def resolve_scheduler(name: str, *, has_experts: bool) -> tuple[str, str]:
    """Replace `auto` by the policy that suits a model.

    Returns:
        The name, and why it was chosen; empty if it was asked for.
    """
    if name != AUTO:
        return name, ""
    if has_experts:
        return "layered", "chunks of a prompt would load nearly all experts, each of them again"
    return "chunked", (
        "the model has no experts: every chunk loads the same weights, which costs little, and "
        "layered prefill would only delay first tokens"
    )


def default_batched_tokens(scheduler: str, max_model_len: int, decoding: int) -> int:
    """Rows of a step where nobody has said how many.

    Chunks are what a decode step is prolonged by, and stay short. A wave of layered prefill takes
    as many steps as its rows ask for, whatever its size, and saves the more the longer it is: it
    gets room for a whole prompt, up to what workspaces should cost.

    Args:
        scheduler: name of a policy.
        max_model_len: longest sequence.
        decoding: rows that a step must have at least: one, and proposals, for every seat.
    """
    wanted = _CHUNK_ROWS
    if scheduler == "layered":
        wanted = max(wanted, min(_WAVE_ROWS, max_model_len + decoding))
    return max(wanted, decoding)


register_scheduler("chunked", ChunkedScheduler)
register_scheduler("layered", LayeredScheduler)
register_scheduler("laps", LengthAwareScheduler)
