"""The torch backends that ranks can use, by name. A new one is a file beside these and a class
here."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from twinflow.parallel.ranks.meshes.base import RankMesh
from twinflow.parallel.ranks.meshes.gloo import GlooMesh
from twinflow.parallel.ranks.meshes.nccl import NcclMesh


def by_backend(meshes: Iterable[type[RankMesh]]) -> Mapping[str, type[RankMesh]]:
    """Index mesh classes by backend.

    Raises:
        ValueError: two classes claim the same backend.
    """
    found: dict[str, type[RankMesh]] = {}
    for mesh in meshes:
        if mesh.backend in found:
            raise ValueError(f"two meshes claim the backend {mesh.backend!r}")
        found[mesh.backend] = mesh
    return MappingProxyType(found)


RANK_MESHES = by_backend((GlooMesh, NcclMesh))
