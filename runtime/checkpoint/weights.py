"""The weights of a checkpoint: read into memory, checked, and hashed while they pass.

Opening checks every header and allocates nothing. Reading copies each tensor into memory of its
own and closes the file, so that nothing which happens to the files later can reach a running
worker. Float8 weights are dequantised on the way. Placing, casting and sharding tensors is the
model's business.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from types import MappingProxyType

import torch
import xxhash
from torch import Tensor

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.config import CONFIG, GENERATION_CONFIG
from twinflow.runtime.checkpoint.directory import ModelDirectory
from twinflow.runtime.checkpoint.fp8 import FLOAT8, dequantise, pair_scales
from twinflow.runtime.checkpoint.json_file import read_json, read_small_file, shown
from twinflow.runtime.checkpoint.quantization import BlockSize, read_block_size
from twinflow.runtime.checkpoint.safetensors_header import FileStamp, Shard, TensorEntry
from twinflow.runtime.checkpoint.shapes import check_shapes
from twinflow.runtime.checkpoint.shards import find_shards
from twinflow.runtime.checkpoint.tokenizer_check import MAX_TOKENIZER_BYTES, TOKENIZER

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

_CHUNK_BYTES = 16 << 20
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    FLOAT8: torch.float8_e4m3fn,
}


class Checkpoint:
    """The weights in a Hugging Face model directory.

    Made by `Checkpoint.open`. Holds no file open and no tensor.

    Attributes:
        shapes: shape of every tensor by name; scales of quantised tensors are not among them.
        total_bytes: bytes of all tensors as they are stored.
    """

    def __init__(
        self, folder: ModelDirectory, shards: tuple[Shard, ...], block: BlockSize | None
    ) -> None:
        self._folder = folder
        self._shards = shards
        self._block = block
        self._entries = {entry.name: entry for shard in shards for entry in shard.entries}
        self._scales_of = pair_scales(folder.path, self._entries, block)
        self._scale_names = frozenset(self._scales_of.values())
        self._digests: dict[str, bytes] = {}
        self.shapes: Mapping[str, tuple[int, ...]] = MappingProxyType(
            {
                name: entry.shape
                for name, entry in self._entries.items()
                if name not in self._scale_names
            }
        )
        self.total_bytes = sum(entry.size for entry in self._entries.values())

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Find the weight files and check their headers.

        Raises:
            CheckpointError: no usable weights; the message names the file and the reason.
        """
        folder = ModelDirectory.open(directory)
        config = folder.find(CONFIG)
        block = read_block_size(read_json(config, _FINGERPRINTED[CONFIG])) if config else None
        return cls(folder, find_shards(folder), block)

    def check_shapes(self, expected: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
        """Compare with the tensors that a model needs.

        Returns:
            Names that the model does not use, sorted; worth a warning.

        Raises:
            CheckpointError: tensors are missing, or a shape is another one.
        """
        return check_shapes(self._folder.path, self.shapes, expected)

    def tensors(self, progress: Progress | None = None) -> Iterator[tuple[str, Tensor]]:
        """Read every tensor, in the order of the files.

        Each tensor is contiguous, on the CPU, in its stored dtype, and owns its memory: the
        caller may keep or change it. One tensor exists at a time unless the caller keeps it.
        Quantised tensors come in float32; their scales, which are small, are read before all else.

        Raises:
            CheckpointError: a file changed since `open` or cannot be read, or a tensor contains
                NaN or Inf.
        """
        meter = Meter(self.total_bytes, progress)
        is_scale = self._scale_names.__contains__
        scales = dict(self._read(is_scale, meter))
        for name, tensor in self._read(lambda name: not is_scale(name), meter):
            if self._block is not None and name in self._scales_of:
                whole = dequantise(tensor, scales[self._scales_of[name]], self._block)
                _check_finite(self._folder.path, name, whole)
                yield name, whole
            else:
                yield name, tensor

    @property
    def has_bfloat16_matrices(self) -> bool:
        """Whether all tensors but vectors are stored in bfloat16."""
        return all(
            entry.dtype == "BF16" for entry in self._entries.values() if len(entry.shape) > 1
        )

    @property
    def fingerprint(self) -> str:
        """128-bit xxh3 digest of the configuration, the tokenizer and every weight, as hex.

        Costs nothing once `tensors` ran to its end, else reads the weights. It does not depend
        on how the tensors are spread over files. Not cryptographic: it tells apart checkpoints
        that differ, not forgeries.
        """
        if len(self._digests) < len(self._entries):
            for _ in self.tensors():
                pass
        digest = xxhash.xxh3_128()
        for name, limit in _FINGERPRINTED.items():
            path = self._folder.find(name)
            data = read_small_file(path, limit) if path is not None else b""
            digest.update(f"{name}:{len(data)}:".encode())
            digest.update(data)
        for name, entry in sorted(self._entries.items()):
            digest.update(f"{name}:{entry.dtype}:{entry.shape}:".encode())
            digest.update(self._digests[name])
        return str(digest.hexdigest())

    def _read(self, wanted: Callable[[str], bool], meter: "Meter") -> Iterator[tuple[str, Tensor]]:
        """Read the tensors with the names that are wanted."""
        for shard in self._shards:
            entries = [entry for entry in shard.entries if wanted(entry.name)]
            if not entries:
                continue
            try:
                yield from self._read_entries(shard, entries, meter)
            except OSError as error:
                reason = error.strerror or str(error)
                raise CheckpointError(f"{shard.path}: cannot be read: {reason}") from error

    def _read_entries(
        self, shard: Shard, entries: Sequence[TensorEntry], meter: "Meter"
    ) -> Iterator[tuple[str, Tensor]]:
        with open(shard.path, "rb", buffering=0) as file:
            _check_unchanged(file, shard)
            for entry in entries:
                tensor, digest = _read_tensor(file, shard.path, entry, meter)
                if entry.dtype != FLOAT8:  # of which torch has no extremes
                    _check_finite(shard.path, entry.name, tensor)
                self._digests[entry.name] = digest
                yield entry.name, tensor
            _check_unchanged(file, shard)


_FINGERPRINTED = {CONFIG: 4 << 20, GENERATION_CONFIG: 4 << 20, TOKENIZER: MAX_TOKENIZER_BYTES}


class Meter:
    """Adds up bytes and tells whoever wants to know.

    Args:
        total: bytes in all.
        progress: who is told after each `add`; None for nobody.
    """

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done = 0
        self._total = total
        self._progress = progress

    def add(self, size: int) -> None:
        """Count `size` more bytes as done."""
        self._done += size
        if self._progress is not None:
            self._progress(self._done, self._total)


def _read_tensor(
    file: FileIO, path: Path, entry: TensorEntry, meter: Meter
) -> tuple[Tensor, bytes]:
    """Read one tensor chunk by chunk and hash it on the way."""
    buffer = torch.empty(entry.size, dtype=torch.uint8)
    view = buffer.numpy().data
    digest = xxhash.xxh3_128()
    file.seek(entry.offset)
    start = 0
    while start < entry.size:
        count = file.readinto(view[start : start + _CHUNK_BYTES])
        if not count:
            raise CheckpointError(
                f"{path}: became shorter while tensor {shown(entry.name)} was read"
            )
        digest.update(view[start : start + count])
        start += count
        meter.add(count)
    return buffer.view(_DTYPES[entry.dtype]).reshape(entry.shape), digest.digest()


def _check_unchanged(file: FileIO, shard: Shard) -> None:
    if FileStamp.of(file.fileno()) != shard.stamp:
        raise CheckpointError(f"{shard.path}: changed since it was opened; start again")


def _check_finite(path: Path, name: str, tensor: Tensor) -> None:
    # The extremes are found in one pass without temporaries, and NaN wins either of them.
    low, high = torch.aminmax(tensor)
    if not (math.isfinite(low) and math.isfinite(high)):
        count = int((~torch.isfinite(tensor)).sum())
        raise CheckpointError(
            f"{path}: tensor {shown(name)}: found {count} NaN or Inf among "
            f"{tensor.numel()} values, expected finite weights"
        )
