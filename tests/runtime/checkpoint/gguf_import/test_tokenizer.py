"""The tokenizers of GGUF files: how each kind splits, and which tokens are whole."""

from pathlib import Path
from typing import Any

import gguf
import pytest
from tests.support.checkpoints import REMOVED, assert_one_line, byte_vocabulary
from tests.support.gguf_files import GgufModel
from tokenizers import Tokenizer

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.gguf_import.reader import read_gguf
from twinflow.runtime.checkpoint.gguf_import.tokenizer import build_tokenizer, tokenizer_config

PREFIX = "tokenizer.ggml."


def tokenizer(directory: Path, **changes: Any) -> Tokenizer:
    model = GgufModel(changes={PREFIX + key: value for key, value in changes.items()})
    return build_tokenizer(read_gguf(model.write(directory / "m.gguf")))


def pieces(directory: Path, kind: str, text: str) -> list[str]:
    """How the kind splits `text`, before any merge."""
    split = tokenizer(directory, pre=kind).pre_tokenizer
    assert split is not None
    return [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in split.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("gpt-2", ["It", "'s", " 12345", " DON", "'", "T", "!!", "\n\n ", " x"]),
        (
            "smollm",
            ["It", "'s", " ", "1", "2", "3", "4", "5", " DON", "'", "T", "!!", "\n\n ", " x"],
        ),
        ("llama-bpe", ["It", "'s", " ", "123", "45", " DON", "'T", "!!\n\n", " ", " x"]),
        ("qwen2", ["It", "'s", " ", "1", "2", "3", "4", "5", " DON", "'T", "!!\n\n", " ", " x"]),
    ],
)
def test_each_kind_splits_its_way(tmp_path: Path, kind: str, expected: list[str]) -> None:
    assert pieces(tmp_path, kind, "It's 12345 DON'T!!\n\n  x") == expected


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_text_survives(tmp_path: Path, kind: str) -> None:
    made = tokenizer(tmp_path, pre=kind)
    for text in ("Hello, wörld 42\t\n", "日本語 😀<|im_end|>", "", " "):
        ids = made.encode(text, add_special_tokens=False).ids
        assert made.decode(ids, skip_special_tokens=False) == text


def test_qwen_composes_characters(tmp_path: Path) -> None:
    made = tokenizer(tmp_path, pre="qwen2")
    assert made.encode("e\u0301").ids == made.encode("\u00e9").ids
    plain = tokenizer(tmp_path, pre="gpt-2")
    assert plain.encode("e\u0301").ids != plain.encode("\u00e9").ids


def test_llama_3_takes_whole_words_before_merges(tmp_path: Path) -> None:
    tokens = [*byte_vocabulary(), "zq"]
    changes = {"tokens": tokens, "token_type": REMOVED, "add_bos_token": REMOVED}
    made = tokenizer(tmp_path, pre="llama-bpe", **changes)
    assert made.encode("zq", add_special_tokens=False).tokens == ["zq"]
    assert tokenizer(tmp_path, pre="gpt-2", **changes).encode("zq").tokens == ["z", "q"]


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("gpt-2", {}, ["a"]),
        ("gpt-2", {"add_bos_token": True}, ["<|im_start|>", "a"]),
        ("gpt-2", {"add_eos_token": True}, ["a", "<|im_end|>"]),
        # Llama 3's files need not say so.
        ("llama-bpe", {"add_bos_token": REMOVED}, ["<|im_start|>", "a"]),
        ("llama-bpe", {"add_bos_token": False}, ["a"]),
    ],
)
def test_beginning_and_end_of_sequence(
    tmp_path: Path, kind: str, changes: dict[str, Any], expected: list[str]
) -> None:
    assert tokenizer(tmp_path, pre=kind, **changes).encode("a").tokens == expected


def test_control_and_user_defined_tokens_are_whole(tmp_path: Path) -> None:
    tokens = [*byte_vocabulary(), "<think>", "[PAD266]"]
    kinds = [gguf.TokenType.NORMAL] * len(tokens)
    kinds[:3] = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds[-2:] = [gguf.TokenType.USER_DEFINED, gguf.TokenType.UNUSED]
    made = tokenizer(tmp_path, tokens=tokens, token_type=[int(kind) for kind in kinds])
    encoding = made.encode("a<think><|im_end|>[PAD266]")
    assert encoding.tokens[:3] == ["a", "<think>", "<|im_end|>"]
    assert made.token_to_id("<think>") == len(tokens) - 2
    assert made.token_to_id("[PAD266]") is None
    assert made.decode(encoding.ids) == "a<think>[PAD266]"


def test_absent_special_tokens_are_left_out(tmp_path: Path) -> None:
    changes = {f"{PREFIX}{role}_token_id": REMOVED for role in ("bos", "unknown", "padding")}
    model = GgufModel(changes={**changes, "tokenizer.chat_template": REMOVED})
    config = tokenizer_config(read_gguf(model.write(tmp_path / "m.gguf")), 512)
    assert config["eos_token"] == "<|im_end|>"
    assert not {"bos_token", "unk_token", "pad_token", "chat_template"} & config.keys()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pre": "mystery"}, "tokenizer.ggml.pre: found 'mystery', expected one of gpt-2, smollm"),
        ({"pre": REMOVED}, "tokenizer.ggml.pre: found nothing"),
        ({"model": "llama"}, "tokenizer.ggml.model: found 'llama', expected 'gpt2'"),
        ({"model": REMOVED}, "tokenizer.ggml.model: found nothing"),
        ({"tokens": REMOVED}, "tokenizer.ggml.tokens: found nothing"),
        ({"tokens": ["a", "a"], "token_type": REMOVED}, "without repetitions"),
        ({"token_type": [1, 1]}, "tokenizer.ggml.token_type: found [1, 1], expected a list of 265"),
        ({"merges": REMOVED}, "tokenizer.ggml.merges: found nothing"),
        ({"merges": ["alone"]}, "tokenizer.ggml.merges: found 'alone', expected two tokens"),
        ({"merges": ["no_such_token x"]}, "the vocabulary is damaged"),
        ({"bos_token_id": 9999, "add_bos_token": True}, "tokenizer.ggml.bos_token_id: found 9999"),
        ({"bos_token_id": REMOVED, "add_bos_token": True}, "add_bos_token is set"),
    ],
)
def test_a_bad_vocabulary_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        tokenizer(tmp_path, **changes)
    assert_one_line(caught.value, tmp_path / "m.gguf", reason)
