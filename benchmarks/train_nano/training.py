"""The training loop: reads batches, takes steps, says how it goes, and saves so that it can go on.

What a step reads and how fast it learns is `schedule`'s, the update is `optimizer`'s.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.train_nano.optimizer import Optimizer, OptimizerConfig
from benchmarks.train_nano.schedule import Schedule

# Of the auxiliary loss that keeps the load of experts even.
BALANCE = 0.01
SAY_EVERY = 10
SAVE_EVERY = 50
MAX_GRADIENT = 1.0
EVALUATION_CONTEXT = 512
EVALUATION_ROWS = 8
QUICK_ROWS = 32


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Text that is not learnt from.

    Attributes:
        ids: its tokens [count].
        bytes_of: bytes of text per token of the vocabulary.
    """

    ids: Tensor
    bytes_of: Tensor


@dataclass(frozen=True, slots=True)
class Loss:
    """How well held-out text is predicted.

    Attributes:
        per_token: nats.
        per_byte: nats.
        tokens: how many were predicted.
    """

    per_token: float
    per_byte: float
    tokens: int


class Trainer:
    """Trains one model from where its folder says it is.

    Args:
        model: to be trained, freshly initialised.
        schedule: of the whole training.
        folder: of the checkpoint and the record of losses.
        say: where progress goes.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        folder: Path,
        say: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._schedule = schedule
        self._folder = folder
        self._say = say
        self._clock = clock
        self._optimizer = Optimizer(model, OptimizerConfig())
        self._step = self._restore()

    def run(self, ids: Tensor, held_out: HeldOut, until: int | None = None) -> None:
        """Train on `ids` [count] to the end of the schedule, or until a step."""
        began, first, losses = self._clock(), self._step, list[float]()
        last = self._schedule.steps if until is None else until
        while self._step < last:
            losses.append(self._learn(self._schedule.rows(self._step, ids)))
            self._step += 1
            if self._step % SAY_EVERY == 0:
                self._report(sum(losses) / len(losses), self._clock() - began, self._step - first)
                losses.clear()
            if self._step % SAVE_EVERY == 0 or self._step == last:
                self._save()
                loss = evaluate(self._model, held_out, rows=QUICK_ROWS)
                self._record({"step": self._step, "held_out": loss.per_token})
                self._say.write(f"held out: {loss.per_token:.4f} nats per token\n")
                self._say.flush()

    def _learn(self, rows: Tensor) -> float:
        rows = rows.to(next(self._model.parameters()).device)
        self._model.train()
        logits, imbalance = self._model(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        (loss + BALANCE * imbalance).backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRADIENT)
        self._optimizer.step(self._schedule.rate(self._step))
        return loss.item()

    def _report(self, loss: float, seconds: float, steps: int) -> None:
        schedule = self._schedule
        left = (schedule.steps - self._step) * seconds / steps
        self._record({"step": self._step, "loss": loss, "seconds": seconds})
        self._say.write(
            f"step {self._step}/{schedule.steps}  loss {loss:.4f}  "
            f"context {schedule.context(self._step - 1)}  "
            f"{steps * schedule.batch / seconds:.0f} tokens/s  {left / 60:.0f} min left\n"
        )
        self._say.flush()

    def _record(self, line: dict[str, float]) -> None:
        with (self._folder / "losses.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        state = {f"optimizer.{name}": value for name, value in self._optimizer.state().items()}
        state |= {f"model.{name}": value for name, value in self._model.state_dict().items()}
        # Complete or not at all: the process may be killed at any time.
        unfinished = self._checkpoint.with_suffix(".unfinished")
        save_file({**state, "step": torch.tensor(self._step)}, unfinished)
        unfinished.replace(self._checkpoint)

    def _restore(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._checkpoint.exists():
            return 0
        state = load_file(self._checkpoint)
        self._model.load_state_dict(_below(state, "model."))
        self._optimizer.restore(_below(state, "optimizer."))
        return int(state["step"])

    @property
    def _checkpoint(self) -> Path:
        return checkpoint_file(self._folder)


def checkpoint_file(folder: Path) -> Path:
    """Where a training keeps its state."""
    return folder / "checkpoint.safetensors"


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a training, by the names of its model."""
    return _below(load_file(checkpoint_file(folder)), "model.")


def windows(ids: Tensor, rows: int | None = None) -> Iterator[Tensor]:
    """The first `rows` windows of held-out text, or all, in batches [n, 512 + 1]."""
    count = (len(ids) - 1) // EVALUATION_CONTEXT
    count = count if rows is None else min(rows, count)
    for first in range(0, count, EVALUATION_ROWS):
        begins = range(first, min(first + EVALUATION_ROWS, count))
        yield torch.stack(
            [ids[at * EVALUATION_CONTEXT :][: EVALUATION_CONTEXT + 1] for at in begins]
        ).long()


@torch.no_grad()
def evaluate(model: nn.Module, held_out: HeldOut, rows: int | None = None) -> Loss:
    """The loss in windows of 512 tokens, of the first `rows` of them or of all."""
    model.eval()
    device = next(model.parameters()).device
    nats, tokens, text = 0.0, 0, 0
    for batch in windows(held_out.ids, rows):
        targets = batch[:, 1:].flatten()
        logits, _ = model(batch[:, :-1].to(device))
        nats += F.cross_entropy(logits.flatten(0, 1).cpu(), targets, reduction="sum").item()
        tokens += len(targets)
        text += int(held_out.bytes_of[targets].sum())
    return Loss(nats / tokens, nats / text, tokens)


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
