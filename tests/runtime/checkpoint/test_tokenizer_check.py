"""A tokenizer that cannot serve its model is refused at start (row C10)."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.checkpoints import (
    assert_one_line,
    byte_vocabulary,
    edit_json,
    small_config,
    write_checkpoint,
)

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.tokenizer_check import check_tokenizer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path)


def refused(directory: Path, **changes: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        check_tokenizer(directory, small_config(**changes))
    return caught.value


def added(index: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": text, "special": True, **flags}


def test_a_fitting_tokenizer_passes(directory: Path) -> None:
    check_tokenizer(directory, small_config())
    check_tokenizer(directory, small_config(vocab_size=len(byte_vocabulary())))


def test_missing(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    assert_one_line(refused(directory), directory / "tokenizer.json", "no such file")
    (directory / "tokenizer.model").touch()
    assert_one_line(refused(directory), "tokenizer.model alone is not supported")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"{", "not valid JSON"),
        (b"{}", "is not a tokenizer"),
        (b'{"model": {"type": "Magic", "vocab": {}}}', "is not a tokenizer"),
        (b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "has no tokens"),
        (b'{"model": {"vocab": 3}, "added_tokens": []}', "expected a model with a vocabulary"),
        (b'{"added_tokens": []}', "expected a model with a vocabulary"),
    ],
)
def test_damaged(directory: Path, content: bytes, reason: str) -> None:
    (directory / "tokenizer.json").write_bytes(content)
    assert_one_line(refused(directory), directory / "tokenizer.json", reason)


def test_merges_of_unknown_tokens(directory: Path) -> None:
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["merges"].append(["no such", "token"])
    path.write_text(json.dumps(content), encoding="utf-8")
    assert_one_line(refused(directory), path, "is not a tokenizer")


def test_more_tokens_than_rows(directory: Path) -> None:
    count = len(byte_vocabulary())
    error = refused(directory, vocab_size=count - 1)
    assert_one_line(error, f"has the id {count - 1}", f"has {count - 1} rows")


def test_end_of_sequence_is_no_token(directory: Path) -> None:
    error = refused(directory, eos_token_ids=(2, 299))
    assert_one_line(error, "no token has the end-of-sequence id 299")


@pytest.mark.parametrize(
    "tokens",
    [
        [added(0, "<|endoftext|>"), added(0, "<|other|>")],
        [added(0, "<|endoftext|>"), added(1, "<|endoftext|>")],
        [added(280, "<|new|>"), added(280, "<|newer|>")],
        [added(280, "<|new|>"), added(281, "<|new|>")],
        [added(5, "<|new|>")],
        [added(280, "hello")],
    ],
    ids=["id", "text", "new id", "new text", "id of the vocabulary", "text of the vocabulary"],
)
def test_clashing_added_tokens(directory: Path, tokens: list[dict[str, Any]]) -> None:
    edit_json(directory / "tokenizer.json", added_tokens=tokens)
    assert_one_line(refused(directory), directory / "tokenizer.json", "clashes with")


@pytest.mark.parametrize("tokens", ["x", [3], [{"id": 1}], [{"id": "1", "content": "a"}]])
def test_added_tokens_of_another_type(directory: Path, tokens: object) -> None:
    edit_json(directory / "tokenizer.json", added_tokens=tokens)
    assert_one_line(refused(directory), "added_tokens")


def test_two_tokens_with_one_id(directory: Path) -> None:
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["vocab"]["hello"] = content["model"]["vocab"]["hell"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert_one_line(refused(directory), "have the same id")
