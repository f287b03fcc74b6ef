"""Tokenizer: the library's text for both kinds, token by token, and clear refusals."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tokenizers import (
    byte_level_tokenizer,
    sentencepiece_tokenizer,
    write_chatml_tokenizer,
    write_tokenizer,
)
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from twinflow.protos.errors import CheckpointError, InvalidRequest
from twinflow.runtime.text.tokenizer import Tokenizer

LIBRARY_BYTES = byte_level_tokenizer()
LIBRARY_PIECES = sentencepiece_tokenizer()
BYTES = Tokenizer(LIBRARY_BYTES, bos_token="<|im_start|>", eos_token="<|im_end|>")
PIECES = Tokenizer(LIBRARY_PIECES, bos_token="<s>", eos_token="</s>")

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)


@given(texts)
def test_text_survives_a_round_trip(text: str) -> None:
    assert BYTES.decode(BYTES.encode(text)) == text
    assert PIECES.decode(PIECES.encode(text)) == text.replace("▁", " ")


@pytest.mark.parametrize(
    "text", ["\0", "a\u202eb", "zero\u200bwidth", "🙂👩‍👩‍👧", "e\u0301", "\u00e9", "\ufffd", ""]
)
def test_no_character_is_lost_or_normalised(text: str) -> None:
    for tokenizer in (BYTES, PIECES):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.integers(0, LIBRARY_BYTES.get_vocab_size() - 1), max_size=30), st.booleans())
def test_any_byte_level_tokens_decode_as_in_the_library(ids: list[int], skip: bool) -> None:
    expected = LIBRARY_BYTES.decode(ids, skip_special_tokens=skip)
    assert BYTES.decode(ids, skip_special_tokens=skip) == expected


@given(
    st.lists(st.one_of(st.integers(259, PIECES.vocab_size - 1), st.integers(0, 2)), max_size=30),
    st.booleans(),
)
def test_any_sentencepiece_tokens_decode_as_in_the_library(ids: list[int], skip: bool) -> None:
    """All but byte tokens, of which the library drops whole runs if one byte of them is wrong."""
    expected = LIBRARY_PIECES.decode(ids, skip_special_tokens=skip)
    assert PIECES.decode(ids, skip_special_tokens=skip) == expected


def test_bytes_that_are_not_utf8_cost_no_neighbour() -> None:
    byte = {PIECES.token_bytes(token): token for token in range(3, 259)}
    assert PIECES.decode([byte[bytes([value])] for value in "東".encode() + b"\xff"]) == "東\ufffd"


def test_special_tokens_are_known_and_left_out() -> None:
    assert BYTES.special_ids == {0, 1, 2}
    assert (BYTES.bos_token_id, BYTES.eos_token_id) == (1, 2)
    ids = BYTES.encode("<|im_start|>hi<|im_end|>")
    assert ids[0] == 1 and ids[-1] == 2
    assert BYTES.decode(ids) == "hi"
    assert BYTES.decode(ids, skip_special_tokens=False) == "<|im_start|>hi<|im_end|>"


def test_what_a_model_expects_around_a_text_is_added_on_request() -> None:
    assert PIECES.encode("the")[0] == PIECES.bos_token_id
    assert PIECES.bos_token_id not in PIECES.encode("the", add_special_tokens=False)


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
def test_the_bytes_of_tokens_add_up(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("schläft 🚀東京 🇫🇷", add_special_tokens=False)
    joined = b"".join(tokenizer.token_bytes(token) for token in ids)
    assert joined.decode().removeprefix(" ") == "schläft 🚀東京 🇫🇷"


def test_parts_of_characters_are_spelled_as_bytes() -> None:
    ids = BYTES.encode("🇫🇷")
    assert len(ids) > 2
    assert BYTES.token_bytes(ids[0]) == "🇫🇷".encode()[: len(BYTES.token_bytes(ids[0]))]
    assert BYTES.token_text(ids[0]).startswith("\\xf0")
    assert BYTES.token_text(BYTES.encode(" is")[0]) == " is"
    assert PIECES.token_text(3 + 0xE6) == "\\xe6"
    assert PIECES.token_text(PIECES.encode("the")[1]) == " the"


def test_ids_without_a_token_have_no_text() -> None:
    for outside in (-1, BYTES.vocab_size, 2**40):
        assert BYTES.token_bytes(outside) == b""
        assert BYTES.decode([outside, *BYTES.encode("x")]) == "x"


def test_added_tokens_outside_the_byte_alphabet_are_plain_text() -> None:
    library = byte_level_tokenizer()
    library.add_tokens([AddedToken("two words →", normalized=False)])
    tokenizer = Tokenizer(library)
    ids = tokenizer.encode("a two words → b")
    assert library.token_to_id("two words →") in ids
    assert tokenizer.decode(ids) == library.decode(ids) == "a two words → b"
    assert tokenizer.vocab_size == BYTES.vocab_size + 1


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff", "\ude00\ud83d"])
def test_unpaired_surrogates_are_the_callers_mistake(text: str) -> None:
    with pytest.raises(InvalidRequest, match="surrogate") as caught:
        BYTES.encode(text, param="prompt")
    assert caught.value.param == "prompt"


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    library = byte_level_tokenizer()
    library.enable_truncation(4)
    library.enable_padding(length=64)
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, library))
    assert tokenizer.encode("The capital of France") == BYTES.encode("The capital of France")


def test_load_reads_a_directory(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_chatml_tokenizer(tmp_path))
    assert tokenizer.encode("The capital") == BYTES.encode("The capital")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_named_tokens_may_be_objects_or_absent(tmp_path: Path) -> None:
    write_chatml_tokenizer(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": "<|im_end|>", "lstrip": False}}))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (None, 2)
    config.unlink()
    assert Tokenizer.load(tmp_path).eos_token_id is None


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json: no such file"),
        ("tokenizer.json", b"", "is not a tokenizer"),
        ("tokenizer.json", b"\x80\x04pickle", "is not a tokenizer"),
        ("tokenizer.json", b'{"version": "1.0"}', "is not a tokenizer"),
        ("tokenizer_config.json", b"{", "not valid JSON"),
        ("tokenizer_config.json", b'{"eos_token": 7}', "eos_token: found 7, expected a token's"),
        ("tokenizer_config.json", b'{"eos_token": "<gone>"}', "eos_token: '<gone>' is no token"),
    ],
)
def test_damaged_files_are_named(
    tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    write_chatml_tokenizer(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.load(tmp_path)


def _with_decoder(decoder: decoders.Decoder | None) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.WordLevel({"a": 0, "##b": 1, "?": 2}, unk_token="?"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    if decoder is not None:
        library.decoder = decoder
    return library


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.WordPiece(),
        decoders.Metaspace(),
        decoders.Sequence([decoders.Replace(tokenizers.Regex("x+"), "y"), decoders.Fuse()]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(content=" ", left=2, right=0)]),
        decoders.Sequence([decoders.Strip(content=" ", left=1, right=0), decoders.Fuse()]),
    ],
)
def test_decoders_that_are_no_sum_of_tokens_are_refused(decoder: decoders.Decoder | None) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: decoder: found"):
        Tokenizer(_with_decoder(decoder))


def test_a_decoder_that_does_more_than_its_name_says_is_refused() -> None:
    """Without Fuse, Strip works on every token instead of on the text."""
    library = sentencepiece_tokenizer()
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Strip(content=" ", left=1, right=0)]
    )
    with pytest.raises(CheckpointError, match="not the sum of its tokens"):
        Tokenizer(library)
