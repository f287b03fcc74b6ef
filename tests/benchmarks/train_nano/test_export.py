"""transformers loads what is exported and computes the same with it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.train_nano.corpus import Document
from benchmarks.train_nano.dense_model import DenseShape
from benchmarks.train_nano.export import rounded, write_model
from benchmarks.train_nano.latent_model import LatentShape
from benchmarks.train_nano.vocabulary import train_tokenizer
from tests.support.nano_models import TINY_DENSE, TINY_LATENT, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

SOURCE = "def f(x):\n    return x + 1\n"
shapes = pytest.mark.parametrize("shape", [TINY_LATENT, TINY_DENSE], ids=["latent", "dense"])


@shapes
def test_logits_are_those_of_the_trained_model(
    shape: LatentShape | DenseShape, tmp_path: Path
) -> None:
    model = tiny(shape)
    _export(tmp_path, shape)
    # Any: with the report it returns a pair, which its annotation does not say.
    pair: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    loaded, report = pair
    assert not any(report.values()), report
    ids = torch.randint(0, shape.vocabulary, (2, 700))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids)[0], rtol=0, atol=2e-4)


@shapes
def test_text_is_encoded_as_in_training(shape: LatentShape | DenseShape, tmp_path: Path) -> None:
    _export(tmp_path, shape)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    trained = train_tokenizer([Document("a.py", SOURCE)] * 4, shape.vocabulary)
    assert tokenizer.encode(SOURCE) == trained.encode(SOURCE).ids
    assert tokenizer.decode(tokenizer.encode(SOURCE)) == SOURCE
    assert (
        tokenizer.eos_token_id == json.loads((tmp_path / "config.json").read_text())["eos_token_id"]
    )


def test_a_chat_is_comments_and_code(tmp_path: Path) -> None:
    _export(tmp_path, TINY_LATENT)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    messages = [
        {"role": "user", "content": "Add one.\nFast."},
        {"role": "assistant", "content": "x += 1"},
        {"role": "user", "content": "Again."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "# Add one.\n# Fast.\nx += 1\n# Again.\n"


def test_rounded_weights_are_those_that_bfloat16_holds() -> None:
    weights = rounded({"a": torch.tensor([1.0, 1.001, 1 / 3])})
    assert weights["a"].dtype == torch.float32
    assert torch.equal(weights["a"], weights["a"].bfloat16().float())
    assert weights["a"][1] == 1.0


def _export(directory: Path, shape: LatentShape | DenseShape) -> None:
    tokenizer = train_tokenizer([Document("a.py", SOURCE)] * 4, shape.vocabulary)
    tokenizer.save(str(directory / "trained.json"))
    write_model(directory, shape, tiny(shape).state_dict(), directory / "trained.json")
