"""Admission policies by name."""

from collections.abc import Callable

from twinflow.protos.errors import ConfigError
from twinflow.runtime.schedulers.admission.aggressive import Aggressive
from twinflow.runtime.schedulers.admission.base import Admission
from twinflow.runtime.schedulers.admission.conservative import Conservative
from twinflow.runtime.schedulers.admission.past_future import PastFuture
from twinflow.runtime.schedulers.base import SchedulerLimits

AdmissionBuilder = Callable[[SchedulerLimits], Admission]

_POLICIES: dict[str, AdmissionBuilder] = {}


def register_admission(name: str, build: AdmissionBuilder) -> None:
    """Make a policy available under a name; a name can be taken only once."""
    if name in _POLICIES:
        raise ValueError(f"an admission policy named {name!r} is already registered")
    _POLICIES[name] = build


def create_admission(name: str, limits: SchedulerLimits) -> Admission:
    """The policy with this name.

    Raises:
        ConfigError: there is none.
    """
    build = _POLICIES.get(name)
    if build is None:
        raise ConfigError(f"--admission {name}: unknown; choose one of {sorted(_POLICIES)}")
    return build(limits)


register_admission("aggressive", lambda limits: Aggressive(limits.watermark_blocks))
register_admission("conservative", lambda _: Conservative())
register_admission("past-future", lambda _: PastFuture())
