"""The committed models are what their cards say, and what they write is code."""

import inspect
import json
import re
import unittest.case
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.train_nano.publish import encoded
from benchmarks.train_nano.training import windows
from safetensors import safe_open
from tests.support.nano_models import DRAFTER, EXCERPT, MODELS, NANO
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

MEGABYTES = 60_000_000
TOLERANCE = 1e-3
models = pytest.mark.parametrize("directory", [NANO, DRAFTER], ids=["nano", "nano-drafter"])


@models
def test_the_stated_loss_is_that_of_transformers(directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    text = encoded(directory / "tokenizer.json", EXCERPT.read_text(encoding="utf-8"))
    nats, tokens, size = 0.0, 0, 0
    with torch.no_grad():
        for batch in windows(text.ids):
            targets = batch[:, 1:].flatten()
            logits = model(batch[:, :-1]).logits.flatten(0, 1)
            nats += F.cross_entropy(logits, targets, reduction="sum").item()
            tokens += len(targets)
            size += int(text.bytes_of[targets].sum())
    stated = _row(directory, "`held-out.txt`")
    assert int(stated[0].replace(",", "")) == tokens
    assert float(stated[1]) == pytest.approx(nats / tokens, abs=TOLERANCE)
    assert float(stated[2]) == pytest.approx(nats / size, abs=TOLERANCE)


@models
def test_the_stated_sizes_are_those_of_the_weights(directory: Path) -> None:
    file = directory / "model.safetensors"
    with safe_open(file, framework="pt") as weights:
        slices = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118
        assert {part.get_dtype() for part in slices} == {"BF16"}
        elements = sum(torch.Size(part.get_shape()).numel() for part in slices)
    assert _number(directory, "parameters") == elements
    assert _number(directory, "bytes of weights") == file.stat().st_size


def test_the_drafter_is_a_quarter_of_the_model_and_reads_the_same_tokens() -> None:
    assert _number(DRAFTER, "parameters") == pytest.approx(_number(NANO, "parameters") / 4, rel=0.1)
    one, other = ((at / "tokenizer.json").read_bytes() for at in (NANO, DRAFTER))
    assert one == other


def test_the_model_has_latent_attention_and_experts() -> None:
    config = json.loads((NANO / "config.json").read_text())
    assert config["architectures"] == ["DeepseekV2ForCausalLM"]
    assert config["kv_lora_rank"] == _number(NANO, "latent")
    assert config["n_routed_experts"] == _number(NANO, "experts")
    assert config["max_position_embeddings"] == 2048


def test_all_models_together_are_small() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < MEGABYTES


@models
def test_it_predicts_far_better_than_word_frequencies_would(directory: Path) -> None:
    """The entropy of the tokens of this very text is what knowing their frequencies would give."""
    text = encoded(directory / "tokenizer.json", EXCERPT.read_text(encoding="utf-8"))
    shares = text.ids.bincount().double() / len(text.ids)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum().item()
    assert float(_row(directory, "`held-out.txt`")[1]) < entropy - 1.0


def test_the_model_predicts_better_than_its_drafter() -> None:
    losses = [float(_row(at, "held out, all of it")[1]) for at in (NANO, DRAFTER)]
    assert losses[0] < losses[1] - 0.2


@models
@pytest.mark.parametrize(
    "prompt", ["class Stack:\n    def __init__(self", "    def test_", "import "]
)
def test_what_it_writes_is_made_of_words_of_the_library(directory: Path, prompt: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    with torch.no_grad():
        written = model.generate(ids, max_new_tokens=48, do_sample=False)[0, ids.shape[1] :]
    words = re.findall(r"[A-Za-z]{2,}", tokenizer.decode(written.tolist()))
    known = {word.lower() for word in re.findall(r"[A-Za-z]{2,}", inspect.getsource(unittest.case))}
    assert len(words) >= 5
    assert sum(word.lower() in known for word in words) > 0.6 * len(words)


def _row(directory: Path, name: str) -> list[str]:
    """The cells after the first of a table's row in the card."""
    card = (directory / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^\| {re.escape(name)} \| (.*) \|$", card, re.MULTILINE)
    assert found, f"{directory.name}/README.md has no row {name}"
    return found[1].split(" | ")


def _number(directory: Path, name: str) -> int:
    return int(_row(directory, name)[0].replace(",", ""))
