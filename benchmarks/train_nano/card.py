"""The model card that is written beside an exported model: only text, from figures given to it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.train_nano.corpus import HELD_OUT_OF_256
from benchmarks.train_nano.sampling import TEMPERATURE, TOP_P, Continuation
from benchmarks.train_nano.training import BALANCE, EVALUATION_CONTEXT, Loss


@dataclass(frozen=True, slots=True)
class TextFacts:
    """What was learnt from, or held out.

    Attributes:
        files: source files.
        bytes: of UTF-8.
        tokens: after encoding.
        digest: SHA-256 of the documents' file.
    """

    files: int
    bytes: int
    tokens: int
    digest: str


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """How a model was trained.

    Attributes:
        command: the step `train`, as it was called.
        seed: of weights and order.
        tokens: read.
        batch: tokens per step.
        hours: on the clock.
        machine: what it ran on.
        curve: (step, mean loss in nats per token of the ten steps before).
    """

    command: str
    seed: int
    tokens: int
    batch: int
    hours: float
    machine: str
    curve: Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Everything that a card says.

    Attributes:
        name: of the model.
        summary: what it is, in a sentence or two.
        sizes: rows of the table of sizes.
        python: version whose library was learnt from.
        train: the text learnt from.
        held_out: the text it is judged by.
        training: how it was trained.
        losses: the loss by what it was measured on.
        behaviour: further measured sentences.
        samples: continuations.
    """

    name: str
    summary: str
    sizes: dict[str, str]
    python: str
    train: TextFacts
    held_out: TextFacts
    training: TrainingFacts
    losses: dict[str, Loss]
    behaviour: Sequence[str]
    samples: Sequence[Continuation]

    def __str__(self) -> str:
        sections = (
            f"# {self.name}\n\n{self.summary}",
            f"## Sizes\n\n{_table(('', ''), self.sizes.items())}",
            self._data(),
            self._training(),
            self._quality(),
            self._samples(),
        )
        return "\n\n".join(sections) + "\n"

    def _data(self) -> str:
        rows = (
            (name, f"{facts.files:,}", f"{facts.bytes:,}", f"{facts.tokens:,}", facts.digest[:16])
            for name, facts in (("learnt from", self.train), ("held out", self.held_out))
        )
        return (
            f"## Data and licence\n\n"
            f"The source of the standard library of Python {self.python}, its tests and its"
            f" language reference (`pydoc_data/topics.py`) included. It is © Python Software"
            f" Foundation, under the PSF License Version 2"
            f" (https://docs.python.org/3/license.html), and so is `held-out.txt`, the library's"
            f" `sched.py`. Nothing else was read. A file is held out if the first byte of the"
            f" SHA-256 of its path is below {HELD_OUT_OF_256}.\n\n"
            + _table(("", "files", "bytes", "tokens", "SHA-256"), rows)
        )

    def _training(self) -> str:
        facts = self.training
        steps = facts.tokens // facts.batch
        return (
            f"## Training\n\n"
            f"    python -m benchmarks.train_nano data\n"
            f"    python -m benchmarks.train_nano tokenizer\n"
            f"    {facts.command}\n\n"
            f"{steps:,} steps of {facts.batch:,} tokens, {steps * facts.batch:,} tokens in all, in"
            f" {facts.hours:.2f} hours on {facts.machine}. Muon for matrices, Adam for the rest,"
            f" weights drawn with seed {facts.seed}, contexts of 256 to 2,048 tokens.\n\n"
            + _table(("step", "nats per token"), ((f"{s:,}", f"{x:.3f}") for s, x in facts.curve))
        )

    def _quality(self) -> str:
        rows = (
            (name, f"{loss.tokens:,}", f"{loss.per_token:.4f}", f"{loss.per_byte:.4f}")
            for name, loss in self.losses.items()
        )
        table = _table(("text", "tokens", "nats per token", "nats per byte"), rows)
        return (
            f"## Quality\n\n"
            f"With the weights as they are stored, bfloat16, computed in float32, in windows of"
            f" {EVALUATION_CONTEXT} tokens.\n\n{table}\n\n" + "\n".join(self.behaviour)
        )

    def _samples(self) -> str:
        parts = ["## Samples\n\nThe prompt ends at `»`. Nothing was selected."]
        for sample in self.samples:
            how = "Greedy" if sample.greedy else f"Temperature {TEMPERATURE}, top-p {TOP_P}"
            shown = f"{sample.prompt}»{sample.text}".replace("```", "'''")
            parts.append(f"{how}:\n\n```text\n{shown.rstrip()}\n```")
        return "\n\n".join(parts)


def load_sentence(load: Tensor) -> str:
    """How even the experts' load is, from the shares [layers, experts]."""
    relative = load * load.shape[1]
    return (
        f"- Experts: on the held-out text the busiest expert of a layer gets"
        f" {relative.amax(1).mean():.2f} times the mean load and the idlest"
        f" {relative.amin(1).mean():.2f} times (means over the layers; the auxiliary loss had"
        f" weight {BALANCE})."
    )


def acceptance_sentence(sampled: float, greedy: float) -> str:
    """How often drafts would be accepted."""
    return (
        f"- As a drafter of `nano`, on held-out text, one token ahead: speculative sampling at"
        f" temperature 1 would accept {sampled:.1%} of the drafts, greedy decoding {greedy:.1%}."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
