"""The torch backends a link can use, by name. A new one is a file beside these and a class here."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from twinflow.parallel.links.groups.base import LinkGroup
from twinflow.parallel.links.groups.gloo import GlooGroup
from twinflow.parallel.links.groups.nccl import NcclGroup


def by_backend(groups: Iterable[type[LinkGroup]]) -> Mapping[str, type[LinkGroup]]:
    """Index group classes by backend.

    Raises:
        ValueError: two classes claim the same backend.
    """
    found: dict[str, type[LinkGroup]] = {}
    for group in groups:
        if group.backend in found:
            raise ValueError(f"two link groups claim the backend {group.backend!r}")
        found[group.backend] = group
    return MappingProxyType(found)


LINK_GROUPS = by_backend((GlooGroup, NcclGroup))
