"""Backends by name, and the choice among them."""

from collections.abc import Callable
from dataclasses import dataclass

from twinflow.parallel.partition.backends.base import Backend, Place
from twinflow.parallel.partition.backends.cores import CoreSets
from twinflow.parallel.partition.backends.greenctx import GreenContexts
from twinflow.parallel.partition.backends.names import AUTO, CORES, GREENCTX, NONE
from twinflow.parallel.partition.backends.none import Undivided
from twinflow.protos.errors import ConfigError

_BACKENDS: dict[str, Callable[[Place], Backend]] = {}


def register_backend(name: str, build: Callable[[Place], Backend]) -> None:
    """Make a backend available under a name; a name can be taken only once."""
    if name in _BACKENDS or name == AUTO:
        raise ValueError(f"a lane backend named {name!r} is already registered")
    _BACKENDS[name] = build


def check_backend(name: str) -> None:
    """Refuse a name that nobody knows.

    Raises:
        ConfigError: it is one.
    """
    if name != AUTO and name not in _BACKENDS:
        choices = sorted((AUTO, *_BACKENDS))
        raise ConfigError(f"--lanes {name}: unknown; choose one of {choices}")


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend and why it is this one.

    Attributes:
        backend: ready to be used.
        wanted: what was asked for.
        reason: why the device is not divided although that was asked for; empty if it is.
    """

    backend: Backend
    wanted: str
    reason: str = ""

    @classmethod
    def undivided(cls, wanted: str, place: Place, reason: str) -> "Choice":
        """One lane, for a reason."""
        return cls(Undivided(place), wanted, reason)


def choose_backend(wanted: str, place: Place) -> Choice:
    """The backend that was asked for; if it cannot be had, none, and the reason.

    Args:
        wanted: a name, or `auto` for the one that suits the device.
        place: what there is to divide.

    Raises:
        ConfigError: nobody knows the name.
    """
    check_backend(wanted)
    suitable = CORES if place.device == "cpu" else GREENCTX
    name = suitable if wanted == AUTO else wanted
    build = _BACKENDS.get(name)
    if build is None:
        return Choice.undivided(wanted, place, f"there is no backend for {place.device}")
    try:
        return Choice(build(place), wanted)
    except ConfigError as error:
        return Choice.undivided(wanted, place, error.message)


register_backend(NONE, Undivided)
register_backend(CORES, CoreSets)
register_backend(GREENCTX, GreenContexts)
