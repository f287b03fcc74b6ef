"""Compares the tensors of a checkpoint with those that a model needs.

Used to refuse a checkpoint before its weights are read. Which tensors a model needs is the model's
business; nothing is loaded here.
"""

from collections.abc import Mapping
from pathlib import Path

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.json_file import shown
from twinflow.runtime.checkpoint.shards import listing


def check_shapes(
    directory: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """Names in `found` that nobody expects, sorted.

    Raises:
        CheckpointError: tensors are missing (all are listed), or one has another shape.
    """
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise CheckpointError(
            f"{directory}: {len(missing)} of {len(expected)} tensors are missing: "
            f"{listing(missing)}"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(
                f"{directory}: tensor {shown(name)}: found the shape {list(found[name])}, "
                f"expected {list(shape)} from config.json"
            )
    return tuple(sorted(found.keys() - expected.keys()))
