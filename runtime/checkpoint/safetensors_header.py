"""The header of a safetensors file, checked to the last byte of the file.

Layout (safetensors format description, version 0.4): an unsigned 64-bit little-endian length, a
JSON object of that length (name -> dtype, shape, [begin, end) in the data), then the data.

The `safetensors` library is not used for reading: it maps the file, so that a file which is cut
short later kills the process (SIGBUS), keeps the last of two entries with one name, and accepts
tensors without elements. This module reads the header only; `weights` reads the data.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.json_file import JsonObject, shorten, shown, unique_keys

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 8
_MAX_DIMENSION = 1 << 48
_SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights; fetch them: git lfs pull"),
    (b"<!doctype", "an HTML page, not the weights; download the file again"),
    (b"<html", "an HTML page, not the weights; download the file again"),
    (b"pk\x03\x04", "a ZIP archive (a torch.save file?) under another name"),
    (b"gguf", "a GGUF file under another name; see: twinflow models import"),
    (b"\x80", "a pickle under another name"),
)


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Identity of a file's content, as far as the file system tells it."""

    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, descriptor: int) -> "FileStamp":
        """The stamp of an open file."""
        status = os.fstat(descriptor)
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies.

    Attributes:
        name: name in the checkpoint.
        dtype: safetensors' name of the dtype, a key of `ITEM_BYTES`.
        shape: sizes, all positive; empty for a scalar.
        offset: of the first byte in the file.
        size: bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file.

    Attributes:
        path: the file, links resolved.
        stamp: what the file was when its header was read.
        entries: its tensors in the order of their data.
    """

    path: Path
    stamp: FileStamp
    entries: tuple[TensorEntry, ...]


def read_shard(path: Path) -> Shard:
    """Read and check the header of `path`.

    Raises:
        CheckpointError: the file is not a complete, well-formed safetensors file whose tensors
            have a dtype of `ITEM_BYTES` and elements, and cover the data without gap or overlap.
    """
    try:
        with open(path, "rb") as file:
            stamp = FileStamp.of(file.fileno())
            header = _read_header(file, path, stamp.size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    data_start = _LENGTH_BYTES + len(header)
    entries = [_entry(item, data_start) for item in _items(path, header)]
    entries.sort(key=lambda entry: entry.offset)
    _check_coverage(path, entries, data_start, stamp.size)
    return Shard(path, stamp, tuple(entries))


def _read_header(file: BinaryIO, path: Path, size: int) -> bytes:
    start = file.read(64)
    if len(start) < _LENGTH_BYTES:
        raise CheckpointError(f"{path}: is {size} bytes long, too short for a safetensors file")
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if length > min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
        raise CheckpointError(f"{path}: {_what_else(start, length, size)}")
    file.seek(_LENGTH_BYTES)
    header = file.read(length)
    if len(header) < length:
        raise CheckpointError(f"{path}: became shorter while its header was read")
    return header


def _what_else(start: bytes, length: int, size: int) -> str:
    """What a file is that cannot be safetensors, by its first bytes."""
    for signature, kind in _SIGNATURES:
        if start.lstrip().lower().startswith(signature):
            return f"is {kind}"
    if length > _MAX_HEADER_BYTES:
        return f"is not a safetensors file: its header would be {length} bytes long"
    return f"is cut short: the header takes {length} bytes, the file has {size}"


def _items(path: Path, header: bytes) -> list[JsonObject]:
    """The header's objects, one for each tensor; `prefix` is the tensor's name."""
    try:
        values = json.loads(header.decode("utf-8"), object_pairs_hook=unique_keys)
    except RecursionError as error:
        raise CheckpointError(f"{path}: the header is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: the header is not UTF-8 text") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: the header is not valid: {shorten(str(error))}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: found {shown(values)}, expected an object as header")
    metadata = values.pop("__metadata__", None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    ):
        raise CheckpointError(f"{path}: __metadata__: expected an object of strings")
    items = []
    for name, value in values.items():
        if not isinstance(value, dict):
            raise CheckpointError(f"{path}: tensor {shown(name)}: expected an object")
        items.append(JsonObject(path, value, name))
    return items


def _entry(item: JsonObject, data_start: int) -> TensorEntry:
    where = f"{item.file}: tensor {shown(item.prefix)}"
    dtype = item.get("dtype")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(
            f"{where}: found dtype {shown(dtype)}, expected one of {', '.join(ITEM_BYTES)}"
        )
    shape = _sizes(item.get("shape"), _MAX_DIMENSIONS)
    if shape is None:
        raise CheckpointError(f"{where}: found shape {shown(item.get('shape'))}, expected sizes")
    if 0 in shape:
        raise CheckpointError(f"{where}: has the shape {list(shape)}, a tensor without elements")
    offsets = _sizes(item.get("data_offsets"), 2)
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(
            f"{where}: found data_offsets {shown(item.get('data_offsets'))}, expected [begin, end]"
        )
    size = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != size:
        raise CheckpointError(
            f"{where}: has {offsets[1] - offsets[0]} bytes, expected {size} for {dtype} of the "
            f"shape {list(shape)}"
        )
    return TensorEntry(item.prefix, dtype, shape, data_start + offsets[0], size)


def _sizes(value: object, most: int) -> tuple[int, ...] | None:
    """`value` as sizes; None if it is not a list of at most `most` sane sizes."""
    if not isinstance(value, list) or len(value) > most:
        return None
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < _MAX_DIMENSION:
            return None
    return tuple(value)


def _check_coverage(
    path: Path, entries: list[TensorEntry], data_start: int, file_size: int
) -> None:
    position = data_start
    for entry in entries:
        if entry.offset != position:
            fault = "overlaps the one before it" if entry.offset < position else "follows a gap"
            raise CheckpointError(f"{path}: tensor {shown(entry.name)}: its data {fault}")
        position += entry.size
    if position > file_size:
        raise CheckpointError(
            f"{path}: is cut short: the tensors end at byte {position}, the file has {file_size}"
        )
    if position < file_size:
        raise CheckpointError(
            f"{path}: has {file_size - position} bytes behind its last tensor, expected none"
        )
