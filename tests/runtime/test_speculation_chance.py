"""The distribution of what an engine says is the model's, and usual mistakes would be seen.

Every beginning is enumerated from the model's logits; the engine is asked with thousands of seeds.
Masks, positions, blocks, penalties behind proposed tokens and batching are all between the two.
"""

from collections.abc import Callable
from functools import cache

import pytest
from tests.support.ruled import Mistake, ToyDrafter, engine, expected, sample
from tests.support.speculation import CHI_SQUARE_LIMIT, Tokens, ToyModels, chi_square

from twinflow.runtime.speculative.draft import Draft, Siblings
from twinflow.runtime.speculative.verification import rejection
from twinflow.runtime.speculative.verification.base import VerificationRule
from twinflow.runtime.speculative.verification.registry import create_rule

pytestmark = pytest.mark.slow

TRIALS = 1024
CHAIN, TREE = (0, 1), (0, 0, 1, 1, 2)
MODELS = ToyModels(vocab_size=4, seed=5, closeness=0.0)

law = cache(expected)


def score(
    rule: VerificationRule | None,
    siblings: Siblings,
    parents: tuple[int, ...],
    mistake: Mistake | None = None,
) -> float:
    made = engine(rule, ToyDrafter(MODELS, siblings, parents), mistake)
    observed: dict[Tokens, int] = sample(made, TRIALS)
    account = made.counters.speculation
    assert sum(observed.values()) == TRIALS
    assert account.accepted_tokens > TRIALS / 4
    return chi_square(observed, law())


@pytest.mark.parametrize(
    ("name", "siblings", "parents"),
    [
        ("coupled", Siblings.DISTINCT, TREE),
        ("standard", Siblings.INDEPENDENT, CHAIN),
        ("standard", Siblings.INDEPENDENT, TREE),
        ("traversal", Siblings.DISTINCT, TREE),
    ],
)
def test_an_engine_says_what_its_model_says(
    name: str, siblings: Siblings, parents: tuple[int, ...]
) -> None:
    rule = None if name == "coupled" else create_rule(name)
    assert score(rule, siblings, parents) < CHI_SQUARE_LIMIT


def claiming(siblings: Siblings) -> Callable[[Draft], Draft]:
    """Says that tokens were found in another way than they were."""

    def claim(draft: Draft) -> Draft:
        found = draft.distributions or {
            node: MODELS.drafter(tuple(map(draft.token, draft.path(node))))
            for node in {0, *draft.parents}
        }
        return Draft(draft.tokens, draft.parents, siblings, found)

    return claim


def test_resampling_from_the_target_after_a_rejection_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rejection, "residual", lambda target, drawn_from: target)
    assert score(create_rule("standard"), Siblings.INDEPENDENT, CHAIN) > CHI_SQUARE_LIMIT


@pytest.mark.parametrize(
    ("siblings", "mistake"),
    [
        (Siblings.INDEPENDENT, Mistake(bonus=True)),
        (Siblings.DISTINCT, Mistake(claim=claiming(Siblings.INDEPENDENT))),
        (Siblings.FIXED, Mistake(claim=claiming(Siblings.DISTINCT))),
    ],
    ids=["last token of the drafter", "siblings stay in q", "fixed tokens as if drawn"],
)
def test_other_usual_mistakes_are_seen(siblings: Siblings, mistake: Mistake) -> None:
    parents = CHAIN if siblings is Siblings.INDEPENDENT else (0, 0, 0)
    found = score(create_rule("standard"), siblings, parents, mistake)
    assert found > CHI_SQUARE_LIMIT
