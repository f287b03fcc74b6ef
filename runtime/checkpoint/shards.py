"""Which safetensors files make up a checkpoint.

`model.safetensors` alone, or the shards that `model.safetensors.index.json` names; a directory
with both is read like transformers does, from the single file. Weights in any format that can run
code are recognised by name and never opened.
"""

from pathlib import Path

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.directory import ModelDirectory, refusal
from twinflow.runtime.checkpoint.json_file import JsonObject, read_json, shown
from twinflow.runtime.checkpoint.safetensors_header import Shard, TensorEntry, read_shard

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_MAX_INDEX_BYTES = 64 << 20
_LISTED = 5


def find_shards(folder: ModelDirectory) -> tuple[Shard, ...]:
    """Open every safetensors file of the checkpoint and check that they fit together.

    Raises:
        CheckpointError: no weights, weights of another format, a bad index or a bad shard, a
            tensor in two shards.
    """
    single = folder.find(WEIGHTS)
    if single is not None:
        shard = read_shard(single)
        if not shard.entries:
            raise CheckpointError(f"{single}: has no tensors")
        return (shard,)
    index_path = folder.find(INDEX)
    if index_path is None:
        raise CheckpointError(_why_no_weights(folder))
    index = read_json(index_path, _MAX_INDEX_BYTES)
    homes = _weight_map(index)
    paths = {name: _shard_path(folder, index, name) for name in dict.fromkeys(homes.values())}
    shards = {name: read_shard(path) for name, path in paths.items()}
    _check_agreement(index, homes, shards)
    return tuple(shards.values())


def listing(names: list[str]) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(shown(name).strip("'") for name in names[:_LISTED]) + more


def _weight_map(index: JsonObject) -> dict[str, str]:
    section = index.section("weight_map")
    if section is None or not section.values:
        raise index.error("weight_map", "an object: tensor name -> file name")
    homes: dict[str, str] = {}
    for name, home in section.values.items():
        if not isinstance(home, str) or not home.endswith(".safetensors"):
            raise section.error(name, "the name of a .safetensors file")
        homes[name] = home
    return homes


def _shard_path(folder: ModelDirectory, index: JsonObject, name: str) -> Path:
    path = folder.find(name)
    if path is None:
        raise CheckpointError(f"{index.file}: names the shard {shown(name)}, which does not exist")
    return path


def _check_agreement(index: JsonObject, homes: dict[str, str], shards: dict[str, Shard]) -> None:
    seen: dict[str, str] = {}
    for shard_name, shard in shards.items():
        for entry in shard.entries:
            _check_home(index, homes, entry, shard_name, seen)
    missing = sorted(homes.keys() - seen.keys())
    if missing:
        raise CheckpointError(f"{index.file}: tensors are in no shard: {listing(missing)}")


def _check_home(
    index: JsonObject,
    homes: dict[str, str],
    entry: TensorEntry,
    shard_name: str,
    seen: dict[str, str],
) -> None:
    if entry.name in seen:
        raise CheckpointError(
            f"{index.file}: tensor {shown(entry.name)} is in two shards: {seen[entry.name]} and "
            f"{shard_name}"
        )
    if homes.get(entry.name) != shard_name:
        raise CheckpointError(
            f"{index.file}: tensor {shown(entry.name)} is in {shard_name}, but the index says "
            f"{homes.get(entry.name, 'nothing of it')}"
        )
    seen[entry.name] = shard_name


def _why_no_weights(folder: ModelDirectory) -> str:
    names = folder.names()
    for name in names:
        refused = refusal(name, folder.path / name)
        if refused is not None:
            return refused
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return (
            f"{folder.path}: has {listing(others)}, but neither {WEIGHTS} nor the shards' {INDEX}"
        )
    return f"{folder.path}: no weights, expected {WEIGHTS} or {INDEX}"
