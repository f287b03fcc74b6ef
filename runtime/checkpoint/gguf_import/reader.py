"""Metadata and tensors of a GGUF file, through the `gguf` package.

The package maps the file: it must not change while it is imported. What the values mean is
decided by the modules beside this one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.runtime.checkpoint.json_file import JsonObject, shorten, shown

try:
    import gguf
    from gguf import quants
except ImportError as error:
    raise ConfigError(
        "reading GGUF files needs the gguf package; install it: pip install 'twinflow[gguf]'"
    ) from error

_MAGIC = b"GGUF"
# What the package raises on damaged files: it does not check lengths and counts before using them.
_DAMAGE = (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, RecursionError)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor, still quantised.

    Attributes:
        path: the file, for errors.
        name: llama.cpp's name, such as `blk.0.attn_q.weight`.
        shape: rows first, as in PyTorch (GGUF states it the other way round).
        kind: quantisation, such as `Q4_1`.
        data: the mapped bytes.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: Any
    data: NDArray[Any]

    def dequantize(self) -> NDArray[np.float32]:
        """The values in float32, in memory of their own.

        Raises:
            CheckpointError: the quantisation is not known to the package.
        """
        try:
            values = quants.dequantize(self.data, self.kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: tensor {shown(self.name)}: found the quantisation "
                f"{self.kind.name}, which is not supported"
            ) from error
        return np.array(values, dtype=np.float32).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """An open GGUF file.

    Attributes:
        path: the file.
        metadata: its key/value pairs; keys are absent or have a value.
        tensors: its tensors by name.
    """

    path: Path
    metadata: JsonObject
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the model family, which prefixes the family's keys."""
        name = self.metadata.text("general.architecture")
        if name is None:
            raise self.metadata.error("general.architecture", "the name of a model family")
        return name


def read_gguf(path: Path) -> GgufFile:
    """Read everything but the tensors' values.

    Raises:
        CheckpointError: not a complete GGUF file of this machine's byte order.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if magic != _MAGIC:
        raise CheckpointError(f"{path}: is not a GGUF file: it starts with {magic!r}")
    try:
        reader = gguf.GGUFReader(path)
        if reader.byte_order != "I":
            raise ValueError("it has the other byte order")
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {tensor.name: _tensor(path, tensor) for tensor in reader.tensors}
    except _DAMAGE as error:
        raise CheckpointError(
            f"{path}: is damaged or cut short: {shorten(str(error) or type(error).__name__)}"
        ) from error
    return GgufFile(path, JsonObject(path, metadata), tensors)


def _tensor(path: Path, tensor: Any) -> GgufTensor:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    if 0 in shape:
        raise ValueError(f"tensor {tensor.name} has no elements")
    return GgufTensor(path, tensor.name, shape, tensor.tensor_type, tensor.data)
