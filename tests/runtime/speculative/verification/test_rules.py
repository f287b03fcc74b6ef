"""Every rule gives a sequence the target's distribution, exactly; wrong rules do not."""

import pytest
from tests.support.speculation import (
    ToyModels,
    ToyTarget,
    distance,
    exact_law,
    mean_length,
    one_round,
    propose,
)

from twinflow.protos.errors import ConfigError
from twinflow.runtime.speculative.draft import Draft, FloatArray, Siblings
from twinflow.runtime.speculative.verification import rejection
from twinflow.runtime.speculative.verification.base import Chance
from twinflow.runtime.speculative.verification.registry import create_rule, register_rule

CHAIN = (0, 1)
TREE = (0, 0, 1, 1, 2)
BUSHY = (0, 0, 0, 1, 1)
# Total variation that rounding may leave, and that a mistake of the kinds below exceeds.
EXACT, WRONG = 1e-12, 3e-3

CASES = [
    ("standard", Siblings.INDEPENDENT, CHAIN),
    ("standard", Siblings.INDEPENDENT, TREE),
    ("standard", Siblings.DISTINCT, TREE),
    ("standard", Siblings.DISTINCT, BUSHY),
    ("standard", Siblings.FIXED, BUSHY),
    ("block", Siblings.INDEPENDENT, CHAIN),
    ("block", Siblings.FIXED, CHAIN),
    ("traversal", Siblings.INDEPENDENT, TREE),
    ("traversal", Siblings.DISTINCT, TREE),
    ("traversal", Siblings.DISTINCT, BUSHY),
    ("traversal", Siblings.FIXED, BUSHY),
    ("match", Siblings.FIXED, CHAIN),
    ("match", Siblings.FIXED, BUSHY),
    ("match", Siblings.INDEPENDENT, TREE),
]


def ids(value: object) -> str:
    return str(value).replace(" ", "")


@pytest.mark.parametrize("seed", [7, 8])
@pytest.mark.parametrize(("name", "siblings", "parents"), CASES, ids=ids)
def test_a_round_has_the_distribution_of_the_target(
    name: str, siblings: Siblings, parents: tuple[int, ...], seed: int
) -> None:
    models = ToyModels(vocab_size=3, seed=seed)
    law = one_round(models, create_rule(name), siblings, parents)
    assert sum(law.values()) == pytest.approx(1.0)
    assert distance(models, law) < EXACT


def test_a_proposal_of_the_target_is_accepted_whole() -> None:
    models = ToyModels(vocab_size=4, seed=1, closeness=1.0)
    for name in ("standard", "block"):
        law = one_round(models, create_rule(name), Siblings.INDEPENDENT, CHAIN)
        assert mean_length(law) == pytest.approx(3.0)
        assert distance(models, law) < EXACT


def test_tokens_that_the_target_cannot_have_are_never_accepted() -> None:
    class Banned(ToyModels):
        def target(self, context: tuple[int, ...]) -> FloatArray:
            odds: FloatArray = super().target(context).copy()
            odds[0] = 0.0
            odds /= odds.sum()
            return odds

    models = Banned(vocab_size=3, seed=2, closeness=0.0)
    for name in ("standard", "traversal", "match"):
        law = one_round(models, create_rule(name), Siblings.INDEPENDENT, TREE)
        assert all(0 not in tokens for tokens, weight in law.items() if weight > 0.0)
        assert distance(models, law) < EXACT


def test_whole_paths_are_accepted_no_less_than_single_tokens() -> None:
    for seed in range(2):
        models = ToyModels(vocab_size=3, seed=seed)
        for siblings, parents in ((Siblings.INDEPENDENT, CHAIN), (Siblings.DISTINCT, TREE)):
            single, whole = (
                mean_length(one_round(models, create_rule(name), siblings, parents))
                for name in ("standard", "traversal")
            )
            assert whole > single - EXACT


def test_drawing_once_and_comparing_accepts_what_rejection_of_fixed_tokens_accepts() -> None:
    models = ToyModels(vocab_size=4, seed=3)
    single, drawn = (
        mean_length(one_round(models, create_rule(name), Siblings.FIXED, BUSHY))
        for name in ("standard", "match")
    )
    assert drawn == pytest.approx(single)


@pytest.mark.parametrize("name", ["greedy", "coupled"])
def test_rules_without_chance_follow_the_choice_of_the_target(name: str) -> None:
    models = ToyModels(vocab_size=4, seed=5, closeness=0.9)
    expected = [int(models.target(()).argmax())]
    for _ in range(2):
        expected.append(int(models.target(tuple(expected)).argmax()))
    law = one_round(models, create_rule(name), Siblings.INDEPENDENT, CHAIN)
    assert {len(tokens) for tokens in law} == {1, 2, 3}
    assert all(list(tokens) == expected[: len(tokens)] for tokens in law)


def test_without_a_proposal_a_round_is_one_token_of_the_target() -> None:
    models = ToyModels(vocab_size=3, seed=4)
    for name in ("standard", "block", "match"):
        law = one_round(models, create_rule(name), Siblings.FIXED, ())
        assert distance(models, law) < EXACT


# Four mistakes that are easily made. Each has to be seen by the measure above, or it proves little.


def test_resampling_from_the_target_after_a_rejection_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rejection, "residual", lambda target, drawn_from: target)
    models = ToyModels(vocab_size=3, seed=7)
    law = one_round(models, create_rule("standard"), Siblings.INDEPENDENT, CHAIN)
    assert distance(models, law) > WRONG


def test_a_last_token_of_the_drafter_is_wrong() -> None:
    class DraftersBonus(ToyTarget):
        def probabilities(self, node: int) -> FloatArray:
            if self.draft.children(node):
                return super().probabilities(node)
            return self.models.drafter(tuple(map(self.draft.token, self.draft.path(node))))

    models = ToyModels(vocab_size=3, seed=7)

    def act(chance: Chance) -> tuple[int, ...]:
        draft = propose(models, Siblings.INDEPENDENT, CHAIN, chance)
        rule = create_rule("standard")
        return rule.verify(draft, DraftersBonus(models, draft), chance).tokens(draft)

    assert distance(models, exact_law(act)) > WRONG


@pytest.mark.parametrize(
    ("truth", "claim"),
    [(Siblings.DISTINCT, Siblings.INDEPENDENT), (Siblings.FIXED, Siblings.DISTINCT)],
    ids=["rejected-siblings-stay-in-the-draft-distribution", "likeliest-tokens-as-if-drawn"],
)
@pytest.mark.parametrize("name", ["standard", "traversal"])
def test_a_wrong_claim_about_siblings_is_wrong(name: str, truth: Siblings, claim: Siblings) -> None:
    # Where the target wants more than the drafter gives of one token only, the first is harmless.
    models = ToyModels(vocab_size=4, seed=2)

    def act(chance: Chance) -> tuple[int, ...]:
        draft = propose(models, truth, (0, 0, 0), chance)
        claimed = Draft(draft.tokens, draft.parents, claim, {0: models.drafter(())})
        rule = create_rule(name)
        return rule.verify(claimed, ToyTarget(models, claimed), chance).tokens(claimed)

    assert distance(models, exact_law(act)) > WRONG


def test_names_are_taken_once_and_unknown_ones_refused() -> None:
    with pytest.raises(ValueError, match="already registered"):
        register_rule("standard", rejection.TokenRejection)
    with pytest.raises(ConfigError, match="'blok': unknown; choose one of"):
        create_rule("blok")
