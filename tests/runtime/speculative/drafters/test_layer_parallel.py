"""A drafter with layers side by side: approximate tokens, exact keys and values (EasySpec)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from tests.support.drafted import FakeSequence, caught_up, drafts_of, proposed
from tests.support.runners import make_model, make_runner
from tests.support.tiny_models import tiny_config
from torch import Tensor

from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.model_runner import ModelRunner, SequenceRows
from twinflow.runtime.models.base import Model
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.speculative.drafters.base import DraftQuery
from twinflow.runtime.speculative.drafters.draft_model import DraftModelDrafter
from twinflow.runtime.speculative.layer_parallel.plan import LayerPlan

LAYERS = 6
GREEDY = SamplingParams(temperature=0, max_tokens=30)
PROMPT = [5, 9, 2, 77, 31, 8, 40]
BLOCK = 4


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model(tiny_config(num_layers=LAYERS))


@dataclass
class SlotRunner:
    """Remembers how each KV slot was written last, and asserts that exact passes read exact KV.

    Attributes:
        exact: by block and slot.
        grouped: passes that computed layers side by side.
    """

    runner: ModelRunner
    exact: dict[tuple[int, int], bool] = field(default_factory=dict)
    grouped: int = 0
    passes: list[list[int]] = field(default_factory=list)

    @property
    def kv_cache(self) -> KVCache:
        return self.runner.kv_cache

    def forward(
        self, rows: Sequence[SequenceRows], *, groups: Sequence[range] | None = None
    ) -> Tensor:
        self.grouped += groups is not None
        self.passes.append([len(group.token_ids) for group in rows])
        for group in rows:
            slots = [(group.block_ids[at // BLOCK], at % BLOCK) for at in range(group.start)]
            if groups is None:
                assert all(self.exact[slot] for slot in slots)
            for at in range(group.start, group.start + len(group.token_ids)):
                self.exact[group.block_ids[at // BLOCK], at % BLOCK] = groups is None
        return self.runner.forward(rows, groups=groups)


def drafter(
    model: Model, size: int, *, calibrate: bool = True, max_rows: int = 16
) -> tuple[DraftModelDrafter, SlotRunner]:
    runner = SlotRunner(make_runner(model, 40, BLOCK, max_rows))
    vocab_size = model.config.vocab_size
    made = DraftModelDrafter(
        runner,
        Sampler(vocab_size),
        vocab_size=vocab_size,
        max_rows=max_rows,
        plan=LayerPlan.uniform(LAYERS, size),
        calibrate=calibrate,
    )
    return made, runner


def sequence(name: str = "a", tokens: Sequence[int] = PROMPT) -> FakeSequence:
    return FakeSequence(list(tokens), name, params=GREEDY, prompt_length=len(PROMPT))


def test_groups_of_one_propose_what_the_model_says(model: Model) -> None:
    serial, runner = drafter(model, 1)
    grouped, _ = drafter(model, 4)
    exact = proposed(serial, sequence(), 6)
    assert runner.grouped == 0
    approximate = proposed(grouped, sequence(), 6)
    assert approximate[0] == exact[0]  # of the exact pass
    assert approximate != exact


@pytest.mark.parametrize("size", [2, 4])
def test_calibration_leaves_nothing_approximate_behind(model: Model, size: int) -> None:
    rng, one = random.Random(size), sequence()
    drafting, runner = drafter(model, size)
    fresh, _ = drafter(model, size)
    for number in range(8):
        guess = proposed(drafting, one, 4)
        drafting.check_integrity()
        again = sequence(str(number), one.all_tokens)
        assert guess == caught_up(fresh, again, 4)
        fresh.forget(again)
        accepted = rng.randrange(5)
        one.all_tokens.extend([*guess[:accepted], rng.randrange(model.config.vocab_size)])
        # What was gained, at least the last token, is computed at once and exactly.
        proposed(drafting, one, 1)
        assert runner.passes[-1] == [accepted + 1]
        one.all_tokens.append(rng.randrange(model.config.vocab_size))
    assert runner.grouped == 8 * 3
    drafting.forget(one)
    drafting.check_integrity()
    assert drafting.num_idle_blocks == 39


def test_without_calibration_approximate_values_stay(model: Model) -> None:
    one = sequence()
    drafting, runner = drafter(model, 4, calibrate=False)
    differs = False
    for number in range(6):
        guess = proposed(drafting, one, 4)
        drafting.check_integrity()
        fresh, _ = drafter(model, 4)
        differs |= guess != proposed(fresh, sequence(str(number), one.all_tokens), 4)
        one.all_tokens.extend(guess)
    assert differs
    assert not all(runner.exact.values())
    prompt = [runner.exact[1 + at // BLOCK, at % BLOCK] for at in range(len(PROMPT))]
    assert all(prompt)


def test_sequences_of_different_lengths_are_calibrated_together(model: Model) -> None:
    alone = [proposed(drafter(model, 3)[0], sequence(), limit) for limit in (1, 4)]
    drafting, runner = drafter(model, 3, max_rows=5)
    queries = [DraftQuery(sequence(name), limit) for name, limit in (("a", 1), ("b", 4))]
    assert [draft.tokens for draft in drafts_of(drafting, queries)] == alone
    assert max(map(sum, runner.passes)) <= 5
    drafting.check_integrity()


def test_integrity_notices_approximate_values_that_count(model: Model) -> None:
    drafting, _ = drafter(model, 4)
    proposed(drafting, sequence(), 4)
    known = drafting._sequences["a"]
    known.written.append(3)
    with pytest.raises(AssertionError, match="of 8 drafted positions 7 are exact"):
        drafting.check_integrity()
    known.written.pop()
    known.blocks.append(known.blocks[0])
    with pytest.raises(AssertionError, match="blocks of the drafter"):
        drafting.check_integrity()
