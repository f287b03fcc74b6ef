"""Scheduling policies by name."""

from collections.abc import Callable

from twinflow.protos.errors import ConfigError
from twinflow.runtime.schedulers.base import Scheduler, SchedulerLimits
from twinflow.runtime.schedulers.chunked import ChunkedScheduler

_POLICIES: dict[str, Callable[[SchedulerLimits], Scheduler]] = {}


def register_scheduler(name: str, build: Callable[[SchedulerLimits], Scheduler]) -> None:
    """Make a policy available under a name; a name can be taken only once."""
    if name in _POLICIES:
        raise ValueError(f"a scheduler named {name!r} is already registered")
    _POLICIES[name] = build


def create_scheduler(name: str, limits: SchedulerLimits) -> Scheduler:
    """Build the policy with this name.

    Raises:
        ConfigError: there is none.
    """
    build = _POLICIES.get(name)
    if build is None:
        raise ConfigError(f"--scheduler {name}: unknown; choose one of {sorted(_POLICIES)}")
    return build(limits)


register_scheduler("chunked", ChunkedScheduler)
