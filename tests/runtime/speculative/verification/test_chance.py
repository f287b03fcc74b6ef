"""The random decisions of verification: fair, repeatable, and independent of token noise."""

from dataclasses import replace

import numpy as np
import pytest
from tests.support.speculation import (
    CHI_SQUARE_LIMIT,
    Tokens,
    ToyModels,
    ToyTarget,
    chi_square,
    propose,
)

from twinflow.runtime.sampling.noise import mix64, stream_key
from twinflow.runtime.speculative.draft import Siblings
from twinflow.runtime.speculative.verification.chance import CounterChance
from twinflow.runtime.speculative.verification.registry import create_rule


def test_decisions_depend_on_seed_and_position_alone() -> None:
    odds = np.full(1000, 0.001)

    def draws(seed: int, position: int) -> list[int]:
        chance = CounterChance(seed, position)
        return [chance.draw(odds) for _ in range(8)]

    assert draws(1, 2) == draws(1, 2)
    assert len({tuple(draws(seed, position)) for seed in range(4) for position in range(4)}) == 16


def test_certain_things_happen_and_impossible_ones_do_not() -> None:
    chance = CounterChance(0, 0)
    assert all(chance.happens(0.3, 0.3) for _ in range(500))
    assert not any(chance.happens(0.0, 0.3) for _ in range(500))
    assert not chance.happens(0.0, 0.0)
    assert {chance.draw(np.array([0.0, 1.0, 0.0])) for _ in range(500)} == {1}


def test_decisions_are_not_the_noise_of_the_same_position() -> None:
    decisions = CounterChance(5, 9)
    first = decisions.draw(np.full(2**16, 2.0**-16))
    assert first != mix64(stream_key(5, 9) + 0x9E3779B97F4A7C15) >> 48


@pytest.mark.parametrize(
    ("name", "siblings"),
    [
        ("standard", Siblings.INDEPENDENT),
        ("standard", Siblings.DISTINCT),
        ("traversal", Siblings.DISTINCT),
        ("match", Siblings.FIXED),
    ],
)
def test_rounds_pass_a_chi_square_test(name: str, siblings: Siblings) -> None:
    models, rule, length = ToyModels(vocab_size=4, seed=11), create_rule(name), 3
    observed: dict[Tokens, int] = {}
    for seed in range(2500):
        tokens: Tokens = ()
        while len(tokens) < length:
            chance = CounterChance(seed, len(tokens))
            behind = replace(models, begun=tokens)
            draft = propose(behind, siblings, (0, 0, 1), chance)
            tokens += rule.verify(draft, ToyTarget(behind, draft), chance).tokens(draft)
        observed[tokens[:length]] = observed.get(tokens[:length], 0) + 1
    assert chi_square(observed, models.continuations(length)) < CHI_SQUARE_LIMIT
