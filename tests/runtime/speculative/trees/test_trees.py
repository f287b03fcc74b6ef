"""Trees: beam, DySpec, templates and Sequoia's dynamic programme."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from tests.support.speculation import ToyModels, ToyTarget, distance, exact_law

from twinflow.runtime.speculative.draft import Draft, FloatArray, Siblings
from twinflow.runtime.speculative.trees.base import Growth, Path, grow_together
from twinflow.runtime.speculative.trees.beam import beam_tree
from twinflow.runtime.speculative.trees.dyspec import dyspec_tree
from twinflow.runtime.speculative.trees.sequoia import SequoiaProgramme, sequoia_tree
from twinflow.runtime.speculative.trees.template import TreeTemplate
from twinflow.runtime.speculative.verification.base import Chance
from twinflow.runtime.speculative.verification.chance import CounterChance
from twinflow.runtime.speculative.verification.registry import create_rule

MODELS = ToyModels(vocab_size=3, seed=2)


def expand(paths: Mapping[int, Sequence[Path]]) -> dict[int, list[FloatArray]]:
    return {number: [MODELS.drafter(path) for path in some] for number, some in paths.items()}


def grown(growth: Growth) -> Draft:
    (draft,) = grow_together([growth], expand)
    return draft


def values(draft: Draft) -> list[float]:
    """The drafter's probability of the path to each node."""
    found = []
    for node in range(1, len(draft) + 1):
        tokens = tuple(map(draft.token, draft.path(node)))
        odds = [MODELS.drafter(tokens[:depth])[token] for depth, token in enumerate(tokens)]
        found.append(math.prod(map(float, odds)))
    return found


def test_a_beam_has_the_likeliest_paths_of_all() -> None:
    draft = grown(beam_tree(depth=3, width=9, budget=7))
    every = [
        math.prod(float(MODELS.drafter(path[:depth])[path[depth]]) for depth in range(length))
        for length in (1, 2, 3)
        for path in itertools.product(range(3), repeat=length)
    ]
    assert sorted(values(draft), reverse=True) == pytest.approx(sorted(every, reverse=True)[:7])
    assert draft.siblings is Siblings.FIXED


def test_a_beam_of_width_one_is_the_greedy_chain() -> None:
    draft = grown(beam_tree(depth=3, width=1, budget=10))
    assert draft.is_chain
    assert draft.tokens[0] == int(MODELS.drafter(()).argmax())
    assert len(draft) == 3


def passes(growth: Growth, distribution: Sequence[float]) -> tuple[Draft, int]:
    """A tree whose tokens are as likely everywhere, and how often the drafter was asked."""
    asked = 0

    def same(paths: Mapping[int, Sequence[Path]]) -> dict[int, list[FloatArray]]:
        nonlocal asked
        asked += 1
        return {number: [np.array(distribution)] * len(some) for number, some in paths.items()}

    (draft,) = grow_together([growth], same)
    return draft, asked


@pytest.mark.parametrize(
    ("distribution", "budget", "most"),
    [([0.9, 0.1], 2, 2), ([0.5, 0.5], 2, 1), ([1.0, 0.0], 3, 3), ([0.4, 0.3, 0.3], 5, 3)],
)
def test_a_beam_makes_no_pass_that_leaves_no_node(
    distribution: list[float], budget: int, most: int
) -> None:
    draft, asked = passes(beam_tree(depth=16, width=3, budget=budget), distribution)
    assert len(draft) == budget
    assert asked == most == draft.levels


def test_a_draft_counts_levels_that_left_it_no_node() -> None:
    # Behind the first token comes the likelier one, but no path of two is as likely as a third.
    draft, asked = passes(beam_tree(depth=4, width=2, budget=3), [0.45, 0.35, 0.2])
    assert (draft.depth, draft.levels, asked) == (2, 2, 2)
    short, asked = passes(beam_tree(depth=4, width=3, budget=2), [0.45, 0.35, 0.2])
    assert (short.depth, short.levels, asked) == (1, 2, 2)
    assert Draft.chain([1, 2]).levels == 2


@pytest.mark.parametrize("likely", [[1.0, 0.0, 0.0], [0.6, 0.4, 0.0], [0.0, 0.0, 0.0]], ids=str)
def test_tokens_that_cannot_come_have_no_nodes(likely: list[float]) -> None:
    template = TreeTemplate((0, 0, 0, 1, 2, 3, 1, 5), (0, 1, 2, 0, 0, 0, 1, 0))
    draft, _ = passes(template.grow(8), likely)
    assert all(likely[token] > 0.0 for token in draft.tokens)
    possible = sum(rate > 0.0 for rate in likely)
    assert len(draft.children(0)) == possible
    assert len(draft) == {0: 0, 1: 2, 2: 6}[possible]
    beam, _ = passes(beam_tree(depth=3, width=3, budget=8), likely)
    assert all(likely[token] > 0.0 for token in beam.tokens)


@pytest.mark.parametrize("rule", ["standard", "traversal"])
@pytest.mark.parametrize(("budget", "threshold"), [(3, 0.0), (3, 0.15)])
def test_dyspec_keeps_the_distribution_of_the_target(
    rule: str, budget: int, threshold: float
) -> None:
    def act(chance: Chance) -> tuple[int, ...]:
        draft = grown(dyspec_tree(chance, depth=2, budget=budget, threshold=threshold))
        verdict = create_rule(rule).verify(draft, ToyTarget(MODELS, draft), chance)
        return verdict.tokens(draft)

    assert distance(MODELS, exact_law(act)) < 1e-12


def test_dyspec_grows_where_the_drafter_is_sure() -> None:
    sizes = [
        len(grown(dyspec_tree(CounterChance(1, 0), depth=3, budget=8, threshold=threshold)))
        for threshold in (0.9, 0.3, 0.05, 0.0)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == 8
    draft = grown(dyspec_tree(CounterChance(3, 0), depth=3, budget=8, threshold=0.0))
    assert draft.siblings is Siblings.DISTINCT
    for node in range(len(draft) + 1):
        tokens = [draft.token(child) for child in draft.children(node)]
        assert len(set(tokens)) == len(tokens)


def accepted(template: TreeTemplate, rates: Sequence[float]) -> float:
    """Nodes of a template that are accepted on average."""
    reach = [1.0]
    for parent, rank in zip(template.parents, template.ranks, strict=True):
        reach.append(reach[parent] * rates[rank])
    return sum(reach[1:])


def all_templates(budget: int, width: int) -> list[TreeTemplate]:
    """Every tree in which the r-th child comes only with the one before."""
    grown: set[tuple[tuple[int, ...], tuple[int, ...]]] = {((), ())}
    found = set(grown)
    for _ in range(budget):
        following = set()
        for parents, ranks in grown:
            for node in range(len(parents) + 1):
                rank = parents.count(node)
                if rank < width:
                    following.add(((*parents, node), (*ranks, rank)))
        grown = following
        found |= grown
    return [TreeTemplate(*shape) for shape in found]


@pytest.mark.parametrize("rates", [(0.7, 0.1, 0.05), (0.4, 0.3, 0.2), (0.9, 0.05, 0.0)])
def test_sequoia_finds_the_best_of_all_trees(rates: tuple[float, ...]) -> None:
    tree = sequoia_tree(rates, budget=5, depth=5)
    best = max(accepted(template, rates) for template in all_templates(5, 3))
    assert tree.accepted == pytest.approx(best)
    assert accepted(tree.template, rates) == pytest.approx(best)
    flat = sequoia_tree(rates, budget=5, depth=1)
    assert set(flat.template.parents) == {0}


def test_one_programme_has_the_best_trees_of_all_sizes() -> None:
    rates = (0.55, 0.2, 0.1, 0.0)
    programme = SequoiaProgramme(rates, budget=16, depth=4)
    for nodes in range(17):
        tree = programme.tree(nodes)
        assert len(tree.template.parents) == nodes
        assert accepted(tree.template, rates) == pytest.approx(tree.accepted)
        assert max(Draft((0,) * nodes, tree.template.parents).depth, 1) <= 4
    for nodes in (1, 5, 12):
        assert programme.tree(nodes) == sequoia_tree(rates, budget=nodes, depth=4)


def test_rates_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="no probabilities"):
        sequoia_tree((0.8, 0.4), budget=2, depth=2)


def test_proposals_that_are_no_trees_are_refused() -> None:
    with pytest.raises(ValueError, match="node 1 cannot follow node 1"):
        Draft((4,), (1,))
    with pytest.raises(ValueError, match="2 tokens have 1 parents"):
        Draft((4, 5), (0,))
    with pytest.raises(ValueError, match="drawn from is missing"):
        Draft((4,), (0,), Siblings.DISTINCT)


def test_a_shortened_proposal_keeps_its_first_nodes() -> None:
    draft = Draft((1, 2, 3), (0, 0, 1))
    assert draft.shortened(2).parents == (0, 0)
    assert draft.shortened(5) is draft


def test_of_twins_the_one_that_goes_on_is_followed() -> None:
    twins = {0: np.array([0.0, 1.0]), 2: np.array([0.0, 1.0])}
    draft = Draft((1, 1, 1), (0, 0, 2), Siblings.INDEPENDENT, twins)
    assert draft.has_twins
    assert draft.along([1, 1]) == 3
    assert draft.along([1]) == 1
    assert draft.along([0, 1]) == 0
