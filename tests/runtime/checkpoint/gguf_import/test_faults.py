"""Imports that fail leave nothing behind and say why."""

import importlib
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.checkpoints import REMOVED, assert_one_line
from tests.support.gguf_files import GgufModel, gguf_config

from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.runtime.checkpoint.gguf_import import import_gguf, source
from twinflow.runtime.checkpoint.weights import Checkpoint


def refused(file: Path, target: Path) -> CheckpointError:
    """The error of an import that must fail and leave the target's folder as it was."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        import_gguf(file, target)
    assert sorted(target.parent.iterdir()) == before
    return caught.value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"llama.block_count": REMOVED}, "llama.block_count: found nothing"),
        ({"llama.block_count": 0}, "llama.block_count: found 0"),
        ({"llama.block_count": 10**9}, "num_hidden_layers: found 1000000000"),
        ({"llama.block_count": "3"}, "llama.block_count: found '3'"),
        ({"llama.block_count": 4}, "tensors are missing: model.layers.3.input_layernorm"),
        ({"llama.block_count": 2}, "has no use for the tensor model.layers.2."),
        ({"llama.attention.head_count": 8}, "found the shape [64, 64], expected [128, 64]"),
        ({"llama.attention.head_count_kv": 3}, "num_key_value_heads: found 3"),
        ({"llama.attention.value_length": 8}, "llama.attention.value_length: found 8"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count: found 8"),
        ({"llama.expert_count": 8}, "mixtures of experts are not supported"),
        ({"llama.attention.sliding_window": 64}, "windows are not supported"),
        ({"llama.rope.freq_base": float("nan")}, "llama.rope.freq_base"),
        ({"tokenizer.ggml.eos_token_id": REMOVED}, "the token that ends a sequence"),
        ({"tokenizer.ggml.eos_token_id": 299}, "eos_token_id"),
        ({"tokenizer.ggml.pre": "mystery"}, "tokenizer.ggml.pre: found 'mystery'"),
    ],
)
def test_bad_metadata(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    file = GgufModel(changes=changes).write(tmp_path / "m.gguf")
    error = refused(file, tmp_path / "model")
    assert_one_line(error, file, reason)
    assert "importing-" not in str(error)


def test_unknown_families_and_tensors(tmp_path: Path) -> None:
    model = GgufModel()
    model.family = "mamba"
    assert_one_line(
        refused(model.write(tmp_path / "a.gguf"), tmp_path / "model"),
        "general.architecture: found 'mamba', expected one of llama, qwen2, qwen3",
    )
    extra = {"blk.0.attn_sinks.weight": np.ones(4, dtype=np.float32)}
    assert_one_line(
        refused(GgufModel(extra=extra).write(tmp_path / "b.gguf"), tmp_path / "model"),
        "'blk.0.attn_sinks.weight' has no place in LlamaForCausalLM",
    )


def test_missing_tensors(tmp_path: Path) -> None:
    model = GgufModel(config=gguf_config())
    del model.state["model.layers.1.mlp.up_proj.weight"]
    error = refused(model.write(tmp_path / "m.gguf"), tmp_path / "model")
    assert_one_line(error, "1 of 30 tensors are missing: model.layers.1.mlp.up_proj.weight")
    del model.state["model.embed_tokens.weight"]
    error = refused(model.write(tmp_path / "m.gguf"), tmp_path / "model")
    assert_one_line(error, tmp_path / "m.gguf", "token_embd.weight")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    model = GgufModel()
    model.state["model.norm.weight"][3] = float("nan")
    file = model.write(tmp_path / "m.gguf")
    assert_one_line(refused(file, tmp_path / "model"), file, "output_norm.weight", "not finite")


def test_truncated_files(tmp_path: Path) -> None:
    file = GgufModel().write(tmp_path / "m.gguf")
    content = file.read_bytes()
    for length in (*range(64), *range(64, len(content), 4001), len(content) - 1):
        file.write_bytes(content[:length])
        assert_one_line(refused(file, tmp_path / "model"), file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not a GGUF file"),
        (b"\x80\x04K\x01.", "is not a GGUF file"),
        (b"GGUF\x63\0\0\0" + b"\0" * 32, "is damaged or cut short"),
        (b"GGUF\0\0\0\x03" + b"\0" * 32, "is damaged or cut short"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 64, "is damaged or cut short"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    assert_one_line(refused(file, tmp_path / "model"), file, reason)


def test_a_missing_source(tmp_path: Path) -> None:
    assert_one_line(refused(tmp_path / "absent.gguf", tmp_path / "model"), "no such file")
    assert_one_line(refused(tmp_path, tmp_path / "model"), "no such file")


def test_a_target_that_is_in_use(tmp_path: Path) -> None:
    file = GgufModel().write(tmp_path / "m.gguf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    assert_one_line(refused(file, tmp_path / "full"), tmp_path / "full", "is not empty")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["precious"]
    assert_one_line(refused(file, tmp_path / "m.gguf"), "is a file")
    (tmp_path / "empty").mkdir()
    import_gguf(file, tmp_path / "empty")
    assert len(Checkpoint.open(tmp_path / "empty").shapes) == 30
    import_gguf(file, tmp_path / "new" / "parents" / "model")
    assert len(Checkpoint.open(tmp_path / "new" / "parents" / "model").shapes) == 30


class _Stop(BaseException):
    """Stands for Ctrl-C."""


def test_an_interrupted_import_leaves_nothing(tmp_path: Path) -> None:
    file, target = GgufModel().write(tmp_path / "m.gguf"), tmp_path / "model"
    seen: list[bool] = []

    def stop_near_the_end(done: int, total: int) -> None:
        seen.append(target.exists())
        if done > 0.9 * total:
            raise _Stop

    with pytest.raises(_Stop):
        import_gguf(file, target, stop_near_the_end)
    assert len(seen) > 20
    assert not any(seen)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_target_that_fills_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    file, target = GgufModel().write(tmp_path / "m.gguf"), tmp_path / "model"

    def fill(done: int, total: int) -> None:
        target.mkdir(exist_ok=True)
        (target / "precious").touch()

    with pytest.raises(CheckpointError) as caught:
        import_gguf(file, target, fill)
    assert_one_line(caught.value, "nothing imported")
    assert [path.name for path in target.iterdir()] == ["precious"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    file = GgufModel().write(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError) as caught:
        import_gguf(file, Path("/proc/model"))
    assert_one_line(caught.value, "/proc", "nothing imported")


def test_a_full_disk_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = GgufModel().write(tmp_path / "m.gguf")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert_one_line(refused(file, tmp_path / "model"), "the weights need", "1000 are free")


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return path


def test_archives_need_exactly_one_gguf_file(tmp_path: Path) -> None:
    none = archive(tmp_path / "none.zip", {"readme": b"x"})
    assert_one_line(refused(none, tmp_path / "model"), none, "found 0 .gguf files")
    damaged = archive(tmp_path / "damaged.zip", {"m.gguf": b"GGUF" + os.urandom(99)})
    error = refused(damaged, tmp_path / "model")
    assert_one_line(error, damaged, "is damaged or cut short")
    assert "importing-" not in str(error)
    two = archive(tmp_path / "two.whl", {"a.gguf": b"x", "b.GGUF": b"y"})
    assert_one_line(refused(two, tmp_path / "model"), two, "found 2 .gguf files")


def test_zip_bombs_are_refused_by_what_they_declare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = archive(tmp_path / "bomb.zip", {"m.gguf": b"\0" * 10_000_000})
    assert bomb.stat().st_size < 20_000
    assert_one_line(refused(bomb, tmp_path / "model"), bomb, "more than 100 times")
    monkeypatch.setattr(source, "MAX_UNPACKED_BYTES", 1000)
    large = archive(tmp_path / "large.zip", {"m.gguf": os.urandom(1001)})
    assert_one_line(refused(large, tmp_path / "model"), large, "the limit of 1000")


def test_a_lying_archive_does_not_unpack_more_than_it_declares(tmp_path: Path) -> None:
    """The sizes in the directory are changed; the packed data stays as large as it was."""
    path = archive(tmp_path / "liar.zip", {"m.gguf": os.urandom(50_000)})
    content = path.read_bytes()
    declared = (50_000).to_bytes(4, "little")
    assert content.count(declared) == 2
    path.write_bytes(content.replace(declared, (100).to_bytes(4, "little")))
    assert_one_line(refused(path, tmp_path / "model"), path, "cannot be unpacked")


def test_damaged_and_encrypted_archives(tmp_path: Path) -> None:
    path = tmp_path / "broken.zip"
    path.write_bytes(b"PK\x03\x04 not really")
    assert_one_line(refused(path, tmp_path / "model"), path, "cannot be unpacked")
    good = archive(tmp_path / "good.zip", {"m.gguf": os.urandom(5000)}).read_bytes()
    path.write_bytes(good[:2000] + b"\0" * 10 + good[2010:])
    assert_one_line(refused(path, tmp_path / "model"), path, "cannot be unpacked")
    encrypted = bytearray(good)
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(encrypted)
    assert_one_line(refused(path, tmp_path / "model"), path, "cannot be unpacked", "encrypted")


def test_without_the_package_the_advice_is_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "twinflow.runtime.checkpoint.gguf_import.reader"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'twinflow\[gguf\]'"):
        importlib.import_module(name)
