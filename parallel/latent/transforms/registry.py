"""Kinds of transforms by name."""

from collections.abc import Callable

from twinflow.parallel.latent.transforms.base import TransformKind
from twinflow.parallel.latent.transforms.hadamard import Hadamard
from twinflow.parallel.latent.transforms.joint import Joint
from twinflow.parallel.latent.transforms.none import NoTransform
from twinflow.parallel.latent.transforms.pca import PrincipalComponents
from twinflow.protos.errors import ConfigError

_KINDS: dict[str, Callable[[], TransformKind]] = {}


def register_transform_kind(name: str, build: Callable[[], TransformKind]) -> None:
    """Make a kind available; a name can be taken only once."""
    if name in _KINDS:
        raise ValueError(f"a transform of latents named {name!r} is already registered")
    _KINDS[name] = build


def create_transform_kind(name: str) -> TransformKind:
    """The kind with this name.

    Raises:
        ConfigError: there is none.
    """
    build = _KINDS.get(name)
    if build is None:
        raise ConfigError(f"transform {name!r}: unknown; choose one of {', '.join(_KINDS)}")
    return build()


def transform_kinds() -> tuple[str, ...]:
    """The names, simplest kind first."""
    return tuple(_KINDS)


for _kind in (NoTransform, Hadamard, PrincipalComponents, Joint):
    register_transform_kind(_kind.name, _kind)
