"""Measures a drafter on sequences of its own making: how long passes take, how much plans err.

At start nobody has asked anything yet, so the drafter writes some text itself, from random first
tokens and with a seed. At the last positions of it every plan computes the last token behind exact
keys and values, which is what a grouped pass does in service; the exact pass follows, and writes
over what the plans have written. What is compared is the distribution of the next token: plans
err by its total variation from the exact one (`errors`), and agree with a target by what both have
in common (`agreement`).
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from twinflow.runtime.model_runner import SequenceRows
from twinflow.runtime.runner import DraftRunner, Runner
from twinflow.runtime.speculative.layer_parallel.plan import GroupErrors, LayerPlan

_SEED = 7
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class ProbeSize:
    """How much text is measured.

    Attributes:
        sequences: texts.
        length: tokens of each.
        positions: of the last tokens, how many are measured.
    """

    sequences: int = 8
    length: int = 32
    positions: int = 6

    def fitting(self, runner: DraftRunner | Runner, max_rows: int, max_len: int) -> "ProbeSize":
        """As much of it as a runner has room for.

        Args:
            runner: will compute the texts.
            max_rows: rows of a pass.
            max_len: longest sequence.
        """
        length = max(2, min(self.length, max_rows, max_len - 1))
        cache = runner.kv_cache
        each = -(-(length + 1) // cache.layout.block_size)
        sequences = max(1, min(self.sequences, max_rows, (cache.num_blocks - 1) // each))
        return ProbeSize(sequences, length, min(self.positions, length - 1))


@dataclass(frozen=True, slots=True)
class Said:
    """What a drafter says behind the last tokens of its texts.

    Attributes:
        texts: tokens, all of one length.
        exact: float32 [positions, texts, vocabulary] probabilities of the drafter itself.
        planned: likewise, of each plan.
    """

    texts: tuple[tuple[int, ...], ...]
    exact: Tensor
    planned: Mapping[LayerPlan, Tensor]


class DraftProbe:
    """The texts of one drafter.

    Args:
        runner: of the drafter; nobody else has blocks of it yet.
        vocab_size: its tokens.
        size: of the texts.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        runner: DraftRunner,
        vocab_size: int,
        size: ProbeSize,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._runner = runner
        self._size = size
        self._vocab_size = vocab_size
        self._clock = clock
        self._tables = block_tables(runner, size)

    def say(self, plans: Iterable[LayerPlan]) -> Said:
        """Write the texts, and let every plan speak at their last positions."""
        size, wanted = self._size, list(plans)
        chance = torch.Generator().manual_seed(_SEED)
        texts = torch.randint(self._vocab_size, (size.sequences, 1), generator=chance).tolist()
        exact: list[Tensor] = []
        planned: dict[LayerPlan, list[Tensor]] = {plan: [] for plan in wanted}
        for position in range(size.length):
            rows = self._last_rows(texts)
            if position >= size.length - size.positions:
                for plan, found in planned.items():
                    found.append(self._probabilities(rows, plan))
            probabilities = self._probabilities(rows, None)
            if position >= size.length - size.positions:
                exact.append(probabilities)
            if position < size.length - 1:
                drawn = torch.multinomial(probabilities, 1, generator=chance).flatten().tolist()
                for text, token in zip(texts, drawn, strict=True):
                    text.append(token)
        stacked = {plan: torch.stack(found) for plan, found in planned.items()}
        return Said(tuple(map(tuple, texts)), torch.stack(exact), stacked)

    def seconds(self, plan: LayerPlan | None) -> float:
        """How long a pass over one row takes behind a text; None for the exact pass."""
        groups = None if plan is None else plan.groups
        row = SequenceRows([0], self._size.length - 1, self._tables[0], samples=True)
        return timed(lambda: self._runner.forward([row], groups=groups), self._clock)

    def _last_rows(self, texts: Sequence[Sequence[int]]) -> list[SequenceRows]:
        return [
            SequenceRows(text[-1:], len(text) - 1, table, samples=True, prompt_tokens=len(text))
            for text, table in zip(texts, self._tables, strict=True)
        ]

    def _probabilities(self, rows: Sequence[SequenceRows], plan: LayerPlan | None) -> Tensor:
        logits = self._runner.forward(rows, groups=None if plan is None else plan.groups)
        return logits.float().softmax(dim=-1).cpu()


def errors(said: Said) -> dict[LayerPlan, float]:
    """Mean total variation between what plans say and what the drafter says."""
    return {
        plan: float(1.0 - torch.minimum(found, said.exact).sum(-1).mean())
        for plan, found in said.planned.items()
    }


def group_plans(
    layers: int, largest: int, first: int, last: int
) -> dict[tuple[int, int], LayerPlan]:
    """Plans with a single group of several layers, by first layer and size of the group.

    Args:
        layers: of the drafter.
        largest: group.
        first: layers at the beginning that are in none.
        last: likewise at the end.
    """
    return {
        (start, size): LayerPlan.of_sizes(
            (*(1,) * start, size, *(1,) * (layers - start - size)),
        )
        for size in range(2, largest + 1)
        for start in range(first, layers - last - size + 1)
    }


def group_errors(said: Said, groups: Mapping[tuple[int, int], LayerPlan]) -> GroupErrors:
    """The errors of `group_plans` as `LayerPlan.measured` wants them."""
    found = errors(said)
    return {group: found[plan] for group, plan in groups.items()}


def agreement(said: Said, target: Tensor) -> tuple[float, dict[LayerPlan, float]]:
    """How much of its probability a drafter has in common with a target: exact, and by plan.

    Args:
        said: by the drafter.
        target: float32 [positions, texts, vocabulary] probabilities at the same places.
    """
    exact = float(torch.minimum(said.exact, target).sum(-1).mean())
    planned = {
        plan: float(torch.minimum(found, target).sum(-1).mean())
        for plan, found in said.planned.items()
    }
    return exact, planned


def target_says(runner: Runner, said: Said, size: ProbeSize) -> Tensor:
    """What a target says where a drafter spoke: float32 [positions, texts, vocabulary].

    Args:
        runner: of the target, whose blocks nobody has yet.
        said: by the drafter.
        size: of the texts.
    """
    tables = block_tables(runner, size)
    found = []
    for text, table in zip(said.texts, tables, strict=True):
        rows = SequenceRows(text, 0, table, samples=True, drafted=size.positions - 1)
        found.append(runner.forward([rows]).float().softmax(dim=-1).cpu())
    runner.take_traffic()
    return torch.stack(found, dim=1)


def verify_seconds(
    runner: Runner, count: int, size: ProbeSize, clock: Callable[[], float] = time.perf_counter
) -> float:
    """How long a target takes for a proposal of `count` tokens to one sequence."""
    count = min(count, size.length - 1)
    table = block_tables(runner, size)[0]
    rows = SequenceRows([0] * (count + 1), 0, table, samples=True, drafted=count)
    found = timed(lambda: runner.forward([rows]), clock)
    runner.take_traffic()
    return found


def timed(call: Callable[[], Tensor], clock: Callable[[], float]) -> float:
    """Seconds of a call that returns logits: the median of some, behind one that does not count."""
    found = []
    for _ in range(1 + _ROUNDS):
        start = clock()
        call().argmax(dim=-1).tolist()  # waits for the device
        found.append(clock() - start)
    return median(found[1:])


def block_tables(runner: DraftRunner | Runner, size: ProbeSize) -> list[range]:
    """Blocks for each text."""
    each = -(-(size.length + 1) // runner.kv_cache.layout.block_size)
    return [range(1 + i * each, 1 + (i + 1) * each) for i in range(size.sequences)]
