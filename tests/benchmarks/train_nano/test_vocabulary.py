"""The tokenizer keeps every byte, and documents stay apart."""

from pathlib import Path

import torch
from benchmarks.train_nano.corpus import Document
from benchmarks.train_nano.vocabulary import (
    END_OF_TEXT_ID,
    encode,
    read_ids,
    token_bytes,
    train_tokenizer,
    write_ids,
)

CORPUS = [Document(f"{index}.py", f"def f{index}(x):\n    return x + 1\n") for index in range(40)]


def test_any_text_survives_and_its_bytes_are_counted() -> None:
    tokenizer = train_tokenizer(CORPUS, 270)
    text = "def g(é):\n\treturn '\U0001f40d' \n"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert int(token_bytes(tokenizer)[ids].sum()) == len(text.encode())
    assert tokenizer.get_vocab_size() == 270


def test_every_document_begins_with_the_special_token_in_an_order_the_seed_gives() -> None:
    tokenizer = train_tokenizer(CORPUS, 270)
    ids = encode(tokenizer, CORPUS, seed=0)
    assert ids[0] == END_OF_TEXT_ID
    assert int((ids == END_OF_TEXT_ID).sum()) == len(CORPUS)
    assert torch.equal(ids, encode(tokenizer, CORPUS, seed=0))
    assert not torch.equal(ids, encode(tokenizer, CORPUS, seed=1))
    assert tokenizer.decode(ids.tolist()) != "".join(document.text for document in CORPUS)


def test_ids_are_read_as_they_were_written(tmp_path: Path) -> None:
    ids = torch.tensor([0, 5, 299], dtype=torch.int32)
    write_ids(tmp_path / "ids.safetensors", ids)
    assert torch.equal(read_ids(tmp_path / "ids.safetensors"), ids)
