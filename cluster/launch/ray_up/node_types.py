"""What is wrong with the node types of a file for `ray up`: their sizes, resources and pools."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from twinflow.runtime.nearest import did_you_mean
from twinflow.workers.role import Role

_PREFIX = "twinflow_"
_POOLS = tuple(f"{_PREFIX}{role}" for role in get_args(Role))
# Names that Ray gives a meaning.
_RAY = ("CPU", "GPU", "TPU", "memory", "object_store_memory")
_DEFAULT_MAX = 2


def node_type_complaints(document: Mapping[str, Any]) -> Iterator[str]:
    """Everything that is wrong with them."""
    kinds: Mapping[str, Mapping[str, Any]] = document.get("available_node_types", {})
    if document["provider"]["type"] == "local":
        if kinds:
            yield "available_node_types: Ray has none with provider local; leave it out"
        return
    if not kinds:
        yield "available_node_types: missing; Ray would start a cluster without GPUs or pools"
        return
    head = document.get("head_node_type", "")
    if head not in kinds:
        yield f"head_node_type {head!r}: is not in available_node_types{did_you_mean(head, kinds)}"
    for name, kind in kinds.items():
        for complaint in _kind_complaints(kind, is_head=name == head):
            yield f"available_node_types.{name}.{complaint}"
    yield from _size_complaints(document, kinds, head)
    yield from _pool_complaints(kinds, head)


def _kind_complaints(kind: Mapping[str, Any], *, is_head: bool) -> Iterator[str]:
    low, high = kind.get("min_workers", 0), kind.get("max_workers")
    if high is not None and low > high:
        yield f"min_workers: {low} is more than max_workers, which is {high}"
    if is_head and low:
        yield "min_workers: the head is no worker; give workers a type of their own"
    resources = kind["resources"]
    for key in resources:
        known = [*_RAY, *_POOLS]
        same = next((name for name in known if name.lower() == key.lower().rstrip("s")), None)
        if key not in known and same:
            yield f"resources.{key}: a resource of yours to Ray; did you mean {same}?"
        elif key not in known and key.startswith(_PREFIX):
            yield f"resources.{key}: there is no such pool{did_you_mean(key, _POOLS)}"
    gpus = resources.get("GPU", 0)
    for pool in _POOLS:
        if gpus and resources.get(pool, 0) > gpus:
            yield f"resources.{pool}: room for {resources[pool]} ranks, and {gpus} GPUs: one each"


def _size_complaints(
    document: Mapping[str, Any], kinds: Mapping[str, Mapping[str, Any]], head: str
) -> Iterator[str]:
    workers = [kind for name, kind in kinds.items() if name != head]
    least = sum(kind.get("min_workers", 0) for kind in workers)
    most = document.get("max_workers", _DEFAULT_MAX)
    if least > most:
        yield f"max_workers: {most} is less than the min_workers of all node types, {least}"
    if workers and not least:
        yield (
            "available_node_types: no type has min_workers, so that no machine is started: "
            "twinflow waits for its nodes and does not order them"
        )


def _pool_complaints(kinds: Mapping[str, Mapping[str, Any]], head: str) -> Iterator[str]:
    declared = {
        pool
        for name, kind in kinds.items()
        if name != head
        for pool in _POOLS
        if kind["resources"].get(pool)
    }
    if not declared:
        return  # every node takes every pool
    if "twinflow_mixed" in declared:
        return
    for pool in ("twinflow_prefill", "twinflow_decode"):
        if pool not in declared:
            yield (
                f"available_node_types: no type declares {pool}, and none twinflow_mixed: once one "
                "pool is declared, nodes take no other"
            )
