"""Turns a finished training into a model directory with its card: exports, measures, samples."""

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from benchmarks.train_nano import corpus, vocabulary
from benchmarks.train_nano.card import (
    Card,
    TextFacts,
    TrainingFacts,
    acceptance_sentence,
    load_sentence,
)
from benchmarks.train_nano.dense_model import DenseShape
from benchmarks.train_nano.export import WEIGHTS, rounded, write_model
from benchmarks.train_nano.latent_model import LatentShape
from benchmarks.train_nano.measures import acceptance, active_parameters, expert_load, parameters
from benchmarks.train_nano.recipes import RECIPES, TARGET, fresh
from benchmarks.train_nano.sampling import PROMPTS, Continuation, Sampler
from benchmarks.train_nano.training import HeldOut, evaluate, trained_weights

SPLITS = ("train", "held-out")
EXCERPT_SOURCE = "sched.py"
EXCERPT = "held-out.txt"
SAMPLE_TOKENS = 120
SAMPLE_SEED = 1
CURVE_POINTS = 8
# Of the held-out text, for shares, which need less of it than losses do.
BEHAVIOUR_TOKENS = 32_768


@dataclass(frozen=True, slots=True)
class Run:
    """How a training was started, as kept beside its checkpoint.

    Attributes:
        command: the command line.
        seed: of weights and order.
        tokens: of the whole training.
        batch: tokens per step.
        machine: what it runs on.
    """

    command: str
    seed: int
    tokens: int
    batch: int
    machine: str

    def write(self, folder: Path) -> None:
        """Keep it in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """What `write` kept."""
        return cls(**json.loads((folder / "run.json").read_text(encoding="utf-8")))


def publish(work: Path, name: str, target: Path) -> None:
    """Write the directory `target` for the finished training `name` in `work`."""
    recipe, model = RECIPES[name], trained(work, name)
    write_model(target, recipe.shape, model.state_dict(), work / "tokenizer.json")
    excerpt = _excerpt(work)
    (target.parent / EXCERPT).write_text(excerpt, encoding="utf-8")
    held_out = held_out_text(work)
    card = Card(
        name=name,
        summary=recipe.summary,
        sizes=_sizes(model, recipe.shape, target / WEIGHTS),
        python=platform.python_version(),
        train=_text_facts(work, "train"),
        held_out=_text_facts(work, "held-out"),
        training=_training_facts(work / name),
        losses={
            "held out, all of it": evaluate(model, held_out),
            f"`{EXCERPT}`": evaluate(model, encoded(work / "tokenizer.json", excerpt)),
        },
        behaviour=[_behaviour(work, name, model, held_out)],
        samples=list(_samples(target)),
    )
    (target / "README.md").write_text(str(card), encoding="utf-8")


def trained(work: Path, name: str) -> nn.Module:
    """A trained model with the weights that are exported."""
    model = fresh(name, seed=0)
    model.load_state_dict(rounded(trained_weights(work / name)))
    return model.eval()


def held_out_text(work: Path) -> HeldOut:
    """The encoded text that is not learnt from."""
    ids = vocabulary.read_ids(work / "held-out.safetensors")
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    return HeldOut(ids, vocabulary.token_bytes(tokenizer))


def encoded(tokenizer_file: Path, text: str) -> HeldOut:
    """One document to be predicted from its first byte on."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    ids = [vocabulary.END_OF_TEXT_ID, *tokenizer.encode(text).ids]
    return HeldOut(torch.tensor(ids), vocabulary.token_bytes(tokenizer))


def _excerpt(work: Path) -> str:
    documents = corpus.read_documents(work / "held-out.jsonl")
    return next(document.text for document in documents if document.path == EXCERPT_SOURCE)


def _sizes(model: nn.Module, shape: LatentShape | DenseShape, weights: Path) -> dict[str, str]:
    sizes = {"parameters": f"{parameters(model):,}"}
    if isinstance(shape, LatentShape):
        sizes["of these active for a token"] = f"{active_parameters(model, shape):,}"
    sizes["bytes of weights"] = f"{weights.stat().st_size:,}"
    return sizes | {name.replace("_", " "): f"{size:,}" for name, size in asdict(shape).items()}


def _text_facts(work: Path, split: str) -> TextFacts:
    source = work / f"{split}.jsonl"
    sizes = [len(document.text.encode()) for document in corpus.read_documents(source)]
    tokens = len(vocabulary.read_ids(work / f"{split}.safetensors"))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return TextFacts(len(sizes), sum(sizes), tokens, digest)


def _training_facts(folder: Path) -> TrainingFacts:
    run = Run.read(folder)
    records = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    said = [record for record in records if "loss" in record]
    return TrainingFacts(
        command=run.command,
        seed=run.seed,
        tokens=run.tokens,
        batch=run.batch,
        hours=_seconds([record["seconds"] for record in said]) / 3600,
        machine=run.machine,
        curve=[(int(record["step"]), record["loss"]) for record in _spread(said)],
    )


def _seconds(clock: Sequence[float]) -> float:
    """The time of all sessions: the clock starts again when a training is taken up again."""
    return sum(a for a, b in pairwise([*clock, 0.0]) if b < a)


def _spread(items: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """The last item and about `CURVE_POINTS` evenly before it."""
    return list(items[::-1][:: max(1, len(items) // CURVE_POINTS)])[::-1]


def _behaviour(work: Path, name: str, model: nn.Module, held_out: HeldOut) -> str:
    some = HeldOut(held_out.ids[: BEHAVIOUR_TOKENS + 1], held_out.bytes_of)
    if name == TARGET:
        return load_sentence(expert_load(model, some))
    return acceptance_sentence(*acceptance(trained(work, TARGET), model, some))


def _samples(target: Path) -> Iterator[Continuation]:
    sampler = Sampler(target)
    for prompt in PROMPTS:
        yield sampler(prompt, SAMPLE_TOKENS)
        yield sampler(prompt, SAMPLE_TOKENS, seed=SAMPLE_SEED)
