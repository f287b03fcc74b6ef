"""Every way in which a safetensors file can be broken is refused, with the file's name (C1)."""

import random
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tests.support.checkpoints import assert_one_line, raw_safetensors

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.safetensors_header import read_shard


def tensor(begin: int, end: int, shape: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


PICKLE = b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes long, too short"),
    "seven bytes": (b"\0" * 7, "7 bytes long, too short"),
    "header cut": (raw_safetensors({"a": tensor(0, 4, [1])})[:20], "cut short"),
    "data cut": (raw_safetensors({"a": tensor(0, 8, [2])}, b"1234"), "cut short"),
    "data too long": (raw_safetensors({"a": tensor(0, 4, [1])}, b"12345"), "1 bytes behind"),
    "header of 2^63": (raw_safetensors(b"{}", length=2**63), "not a safetensors file"),
    "header of 200 MB": (raw_safetensors(b"{}", length=200_000_000), "not a safetensors file"),
    "not JSON": (raw_safetensors(b"{'a'}"), "header is not valid"),
    "a list": (raw_safetensors([]), "found [], expected an object as header"),
    "not UTF-8": (raw_safetensors(b'{"\xff": 1}'), "not UTF-8"),
    "deep": (raw_safetensors(b"[" * 100_000), "nested too deeply"),
    "bad metadata": (raw_safetensors({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata list": (raw_safetensors({"__metadata__": []}), "__metadata__"),
    "entry no object": (raw_safetensors({"a": 1}), "tensor 'a': expected an object"),
    "unknown dtype": (raw_safetensors({"a": tensor(0, 4, [1], "Q4")}, b"1234"), "dtype 'Q4'"),
    "no dtype": (raw_safetensors({"a": {"shape": []}}), "found dtype null"),
    "F64": (raw_safetensors({"a": tensor(0, 8, [1], "F64")}, b"12345678"), "dtype 'F64'"),
    "I8": (raw_safetensors({"a": tensor(0, 1, [1], "I8")}, b"1"), "expected one of F32, F16, BF16"),
    "F8": (raw_safetensors({"a": tensor(0, 1, [1], "F8_E5M2")}, b"1"), "dtype 'F8_E5M2'"),
    "shape and size": (raw_safetensors({"a": tensor(0, 4, [2])}, b"1234"), "expected 8 for F32"),
    "overflow": (raw_safetensors({"a": tensor(0, 4, [2**40] * 4)}, b"1234"), "expected 5"),
    "huge": (raw_safetensors({"a": tensor(0, 4, [2**63])}, b"1234"), "expected sizes"),
    "negative shape": (raw_safetensors({"a": tensor(0, 4, [-1])}, b"1234"), "expected sizes"),
    "shape of text": (raw_safetensors({"a": tensor(0, 4, "1")}, b"1234"), "expected sizes"),
    "zero size": (raw_safetensors({"a": tensor(0, 0, [0, 4])}), "without elements"),
    "negative offset": (raw_safetensors({"a": tensor(-4, 0, [1])}), "data_offsets"),
    "reversed offsets": (raw_safetensors({"a": tensor(4, 0, [1])}, b"1234"), "data_offsets"),
    "overlap": (
        raw_safetensors({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, b"1" * 12),
        "tensor 'b': its data overlaps",
    ),
    "gap": (
        raw_safetensors({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, b"1" * 12),
        "tensor 'b': its data follows a gap",
    ),
    "two entries": (
        raw_safetensors(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"1234",
        ),
        "'a' appears twice",
    ),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
    "HTML too": (b"\n<html lang='en'>not found</html>", "an HTML page"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "pickle": (PICKLE, "a pickle under another name"),
    "ZIP": (b"PK\x03\x04" + b"\0" * 100, "a ZIP archive"),
    "GGUF": (b"GGUF\x03\0\0\0" + b"\0" * 100, "a GGUF file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_file_is_refused(tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_shard(path)
    assert_one_line(caught.value, path, reason)


def good_file(path: Path) -> bytes:
    state = {
        "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "a": torch.ones(3, dtype=torch.bfloat16),
        "c": torch.tensor(2.0, dtype=torch.float16),
    }
    save_file(state, path, metadata={"format": "pt"})
    return path.read_bytes()


def test_a_good_file_is_described(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    content = good_file(path)
    shard = read_shard(path)
    found = {entry.name: (entry.dtype, entry.shape, entry.size) for entry in shard.entries}
    assert found == {
        "a": ("BF16", (3,), 6),
        "b": ("F32", (2, 3), 24),
        "c": ("F16", (), 2),
    }
    assert shard.stamp.size == len(content)
    offsets = [entry.offset for entry in shard.entries]
    assert offsets == sorted(offsets)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    content = good_file(path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_shard(path)


def test_whatever_the_library_refuses_is_refused(tmp_path: Path) -> None:
    """Random damage to the header: the checks here are at least as strict as the library's."""
    path = tmp_path / "x.safetensors"
    content = good_file(path)
    header_end = 8 + int.from_bytes(content[:8], "little")
    generator = random.Random(7)
    replacements = b'0123456789[]{}",:aF-\xff '
    refused = 0
    for _ in range(600):
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(header_end)] = generator.choice(replacements)
        path.write_bytes(damaged)
        try:
            with safe_open(path, framework="pt"):
                continue
        except SafetensorError:
            refused += 1
        with pytest.raises(CheckpointError) as caught:
            read_shard(path)
        assert_one_line(caught.value, path)
    assert refused > 300
