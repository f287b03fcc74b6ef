"""Sequoia's tree follows the rates that are found."""

import random

import pytest
from tests.support.drafted import FakeSequence

from twinflow.runtime.speculative.draft import NOTHING, Draft
from twinflow.runtime.speculative.trees.config import TreeConfig
from twinflow.runtime.speculative.trees.measured import MeasuredTree, assumed_rates
from twinflow.runtime.speculative.trees.sequoia import sequoia_tree
from twinflow.runtime.speculative.trees.template import TreeTemplate

CONFIG = TreeConfig(width=4, depth=4)


def say(tree: MeasuredTree, sequence: FakeSequence, rates: list[float], rng: random.Random) -> int:
    """Propose and go on: at each place the r-th child is right so often. Accepted nodes."""
    tree.settle(sequence)
    template = tree.template(12)
    # Children of a node have different tokens, and 99 is none of them.
    draft = Draft(tuple(template.ranks), template.parents)
    tree.proposed(sequence, draft)
    node, count = 0, 0
    while True:
        (right,) = rng.choices([*range(len(rates)), 99], [*rates, 1.0 - sum(rates)])
        sequence.all_tokens.append(right)
        child = draft.child(node, right)
        if child is None:
            return count
        node, count = child, count + 1


@pytest.mark.parametrize(
    "rates", [[0.85, 0.05, 0.02, 0.01], [0.3, 0.25, 0.2, 0.15], [0.6, 0.2, 0.0, 0.0]], ids=str
)
def test_the_tree_becomes_the_best_for_the_rates_there_are(rates: list[float]) -> None:
    rng, sequence, tree = random.Random(1), FakeSequence([1]), MeasuredTree(CONFIG)
    assert tree.rates == assumed_rates(4)
    for _ in range(2000):
        say(tree, sequence, rates, rng)
    assert tree.rates == pytest.approx(rates, abs=0.06)
    assert tree.widths(12) == tree.template(12).widths
    best = sequoia_tree(rates, budget=12, depth=4).accepted
    assert expected(tree.template(12), rates) > 0.96 * best


def expected(template: TreeTemplate, rates: list[float]) -> float:
    """Accepted nodes on average."""
    value = [1.0]
    for parent, rank in zip(template.parents, template.ranks, strict=True):
        value.append(value[parent] * rates[rank])
    return sum(value[1:])


def test_it_changes_with_what_is_served() -> None:
    rng, sequence, tree = random.Random(2), FakeSequence([1]), MeasuredTree(CONFIG)
    for rates in ([0.9, 0.05, 0.0, 0.0], [0.3, 0.25, 0.2, 0.15]):
        for _ in range(8000):
            say(tree, sequence, rates, rng)
        assert tree.rates[0] == pytest.approx(rates[0], abs=0.06)


def test_the_same_history_makes_the_same_tree() -> None:
    trees = []
    for _ in range(2):
        rng, sequence, tree = random.Random(3), FakeSequence([1]), MeasuredTree(CONFIG)
        for _ in range(500):
            say(tree, sequence, [0.5, 0.3, 0.1, 0.05], rng)
        trees.append((tree.rates, tree.template(12)))
    assert trees[0] == trees[1]


def test_sequences_that_end_or_get_nothing_teach_nothing() -> None:
    tree, sequence = MeasuredTree(CONFIG), FakeSequence([1])
    for _ in range(200):
        tree.proposed(sequence, Draft.chain([5]))
        tree.forget(sequence.request_id)
        sequence.all_tokens.append(5)
        tree.settle(sequence)
        tree.proposed(sequence, NOTHING)
        tree.settle(sequence)
    assert tree.rates == assumed_rates(4)
