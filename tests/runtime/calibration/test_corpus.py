"""Texts as windows: what calibrates is not measured on."""

from pathlib import Path

import pytest
from tests.support.calibrations import TEXT
from tests.support.checkpoints import byte_tokenizer

from twinflow.protos.errors import ConfigError
from twinflow.runtime.calibration.corpus import Corpus
from twinflow.runtime.text.tokenizer import Tokenizer

PLAIN = Tokenizer(byte_tokenizer())
BEGINNING = Tokenizer(byte_tokenizer(), bos_token="<|endoftext|>")


def read(path: Path, tokenizer: Tokenizer = PLAIN, *, tokens: int = 10_000) -> Corpus:
    return Corpus.read(path, tokenizer, tokens=tokens, window=32, columns=32)


def test_windows_follow_each_other_and_are_used_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    corpus = read(tmp_path / "a.txt")
    ids = PLAIN.encode(TEXT, add_special_tokens=False)
    count = len(ids) // 33
    assert len(corpus.calibration) == count // 2
    assert len(corpus.held_out) == count - count // 2
    assert (corpus.window, corpus.prompt, corpus.name) == (32, 16, "a.txt")
    for index, window in enumerate(corpus.calibration):
        assert window == ids[33 * index : 33 * index + 32]
    for index, window in enumerate(corpus.held_out, start=len(corpus.calibration)):
        assert window == ids[33 * index : 33 * (index + 1)]


def test_each_window_begins_as_a_prompt_does(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    corpus = read(tmp_path / "a.txt", BEGINNING)
    ids = PLAIN.encode(TEXT, add_special_tokens=False)
    bos = BEGINNING.bos_token_id
    assert corpus.calibration[1] == [bos, *ids[32:63]]
    assert all(window[0] == bos and len(window) == 33 for window in corpus.held_out)


def test_no_more_of_the_text_is_used_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    few = read(tmp_path / "a.txt", tokens=33 * 9 + 5)
    assert (len(few.calibration), len(few.held_out)) == (4, 5)
    assert few.digest == read(tmp_path / "a.txt").digest


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a few words", "10 tokens are too few for latents of 32 columns; at least 264"),
        (b"", "0 tokens are too few"),
        (b"caf\xe9", "is not UTF-8 at byte 3"),
        (None, "cannot be read: No such file"),
    ],
)
def test_texts_that_will_not_do(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "a.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        read(path)


def test_wide_latents_need_more_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(ConfigError, match="columns; at least 4224 are needed"):
        Corpus.read(tmp_path / "a.txt", PLAIN, tokens=9999, window=32, columns=512)
