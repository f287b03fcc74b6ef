"""Streamed text is the whole text, and no character is shown before it is complete."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.tokenizers import byte_level_tokenizer, sentencepiece_tokenizer

from twinflow.runtime.text.detokenizer import IncrementalDetokenizer
from twinflow.runtime.text.tokenizer import Tokenizer

BYTES = Tokenizer(byte_level_tokenizer())
PIECES = Tokenizer(sentencepiece_tokenizer())
TOKENIZERS = {"bytes": BYTES, "pieces": PIECES}


def chunks(items: list[int], cuts: list[int]) -> list[list[int]]:
    """`items` in parts whose lengths follow `cuts`, then one by one."""
    parts, start = [], 0
    for length in [*cuts, *[1] * len(items)]:
        parts.append(items[start : start + length])
        start += length
    return parts


def streamed(
    tokenizer: Tokenizer, ids: list[int], cuts: list[int], *, skip_special_tokens: bool = True
) -> str:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    text = [detokenizer.push(part) for part in chunks(ids, cuts)]
    return "".join([*text, detokenizer.flush()])


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
def test_all_pieces_together_are_the_decoded_whole(kind: str, data: st.DataObject) -> None:
    """Any tokens: special ones, parts of characters, ids without a token."""
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40))
    cuts = data.draw(st.lists(st.integers(0, 5), max_size=20))
    skip = data.draw(st.booleans())
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    assert streamed(tokenizer, ids, cuts, skip_special_tokens=skip) == whole


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd▁")))
def test_valid_text_is_never_shown_broken(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    detokenizer = IncrementalDetokenizer(tokenizer)
    shown = [detokenizer.push([token]) for token in tokenizer.encode(text)]
    assert "\ufffd" not in "".join(shown)
    assert "".join(shown) == text
    assert detokenizer.flush() == ""


def test_a_split_character_appears_with_its_last_byte() -> None:
    for tokenizer in TOKENIZERS.values():
        ids = tokenizer.encode("x🛠", add_special_tokens=False)
        detokenizer = IncrementalDetokenizer(tokenizer)
        shown = [detokenizer.push([token]) for token in ids]
        assert [text for text in shown if text] == ["x", "🛠"]
        assert shown[-3:] == ["", "", "🛠"]


def test_a_character_that_never_completes_is_marked_once_at_the_end() -> None:
    detokenizer = IncrementalDetokenizer(BYTES)
    ids = BYTES.encode("ok 🛠")
    assert "".join(detokenizer.push([token]) for token in ids[:-1]) == "ok "
    assert detokenizer.flush() == "\ufffd"


def test_endless_broken_bytes_do_not_pile_up() -> None:
    """The byte 0x80 starts no character, so each one is reported at once."""
    detokenizer = IncrementalDetokenizer(BYTES)
    broken = next(token for token in range(BYTES.vocab_size) if BYTES.token_bytes(token) == b"\x80")
    assert [detokenizer.push([broken]) for _ in range(100)] == ["\ufffd"] * 100


def test_the_prompt_is_context_and_not_output() -> None:
    """Only a text's very first space is the tokenizer's own."""
    prompt = PIECES.encode("The capital")
    output = PIECES.encode("of", add_special_tokens=False)
    assert streamed(PIECES, output, []) == "of"
    assert IncrementalDetokenizer(PIECES, prompt).push(output) == " of"
    assert IncrementalDetokenizer(PIECES, prompt[-1:]).push(output) == " of"
    only_special = [PIECES.encode("")[0]]
    assert IncrementalDetokenizer(PIECES, only_special).push(output) == "of"


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), min_size=1),
    st.data(),
)
def test_the_output_completes_what_the_prompt_left_open(text: str, data: st.DataObject) -> None:
    ids = BYTES.encode(text)
    cut = data.draw(st.integers(0, len(ids)))
    shown = BYTES.decode(ids[:cut]).rstrip("\ufffd")
    detokenizer = IncrementalDetokenizer(BYTES, ids[:cut])
    assert shown + detokenizer.push(ids[cut:]) == text
