"""Trees of a drafter with a model: likely paths, in few passes, and every block given back."""

from dataclasses import replace

import pytest
from tests.support.drafted import FakeSequence, drafts_of
from tests.support.runners import make_model, make_runner
from tests.support.tiny_models import tiny_config

from twinflow.runtime.models.base import Model
from twinflow.runtime.sampling import Sampler
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.runtime.speculative.draft import Draft
from twinflow.runtime.speculative.drafters.base import DraftQuery
from twinflow.runtime.speculative.drafters.draft_model import DraftModelDrafter
from twinflow.runtime.speculative.drafters.draft_trees import TreeModelDrafter
from twinflow.runtime.speculative.trees.config import TreeConfig

GREEDY = SamplingParams(temperature=0, max_tokens=30)
SAMPLED = SamplingParams(temperature=0.8, top_k=20, seed=3, max_tokens=30, frequency_penalty=0.5)
PROMPT = [5, 9, 2, 77, 31, 8, 40]
TYPES = ["beam", "dyspec", "sequoia"]


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model(tiny_config(num_layers=2))


def drafter(
    model: Model, tree: TreeConfig | None, num_blocks: int = 60, max_rows: int = 16
) -> DraftModelDrafter:
    runner = make_runner(model, num_blocks, block_size=4, max_num_tokens=max_rows)
    size = model.config.vocab_size
    if tree is None:
        return DraftModelDrafter(runner, Sampler(size), vocab_size=size, max_rows=max_rows)
    return TreeModelDrafter(runner, Sampler(size), tree, vocab_size=size, max_rows=max_rows)


def sequence(name: str, params: SamplingParams, length: int = len(PROMPT)) -> FakeSequence:
    return FakeSequence(PROMPT[:length], name, params=params, prompt_length=length)


def propose(made: DraftModelDrafter, *queries: DraftQuery) -> list[Draft]:
    drafts = drafts_of(made, queries)
    for query in queries:
        made.forget(query.sequence)
    return drafts


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_chain_of_the_model_is_a_path_of_its_tree(
    model: Model, kind: str, params: SamplingParams
) -> None:
    (chain,) = propose(drafter(model, None), DraftQuery(sequence("a", params), 3))
    tree = TreeConfig(type=kind, width=3, depth=3)
    (draft,) = propose(drafter(model, tree), DraftQuery(sequence("a", params), 12))
    # A static tree has it whole; others leave out ends that are not likely enough.
    found = len(draft.path(draft.along(chain.tokens)))
    assert found == 3 if kind == "sequoia" else found >= 1
    assert not draft.is_chain
    assert not draft.has_twins
    assert draft.depth <= 3
    assert len(draft) <= 12


@pytest.mark.parametrize("kind", TYPES)
def test_sequences_grow_together_as_they_do_alone(model: Model, kind: str) -> None:
    tree = TreeConfig(type=kind, width=3, depth=4)
    asks = [(5, GREEDY, 7), (7, SAMPLED, 12), (3, replace(SAMPLED, seed=9), 1)]
    queries = [
        DraftQuery(sequence(str(number), params, length), limit)
        for number, (length, params, limit) in enumerate(asks)
    ]
    alone = [propose(drafter(model, tree), query)[0] for query in queries]
    # With few rows a pass takes several calls of the model.
    for rows in (5, 64):
        made = drafter(model, tree, max_rows=rows)
        assert propose(made, *queries) == alone
        assert made.num_idle_blocks == 59


def test_paths_without_blocks_end_and_nothing_is_lost(model: Model) -> None:
    made = drafter(model, TreeConfig(type="beam", width=4, depth=4), num_blocks=6)
    query = DraftQuery(sequence("a", GREEDY), 8)
    (draft,) = made.propose([query])
    assert 0 < len(draft) <= 8
    made.forget(query.sequence)
    assert made.num_idle_blocks == 5


@pytest.mark.parametrize("kind", TYPES)
def test_paths_that_are_longer_than_a_pass_end(model: Model, kind: str) -> None:
    one_token = replace(SAMPLED, top_k=1)  # so trees are chains as deep as they may be
    for rows in (1, 3):
        made = drafter(model, TreeConfig(type=kind, width=2, depth=16), max_rows=rows)
        query = DraftQuery(sequence("a", one_token, 1), 16)
        (draft,) = propose(made, query)
        # A path of all rows still has something behind it.
        assert draft.depth == rows + 1
        assert made.num_idle_blocks == 59


@pytest.mark.parametrize("kind", TYPES)
def test_only_tokens_that_may_come_have_nodes(model: Model, kind: str) -> None:
    tree = TreeConfig(type=kind, width=4, depth=3)
    for most in (1, 2):
        query = DraftQuery(sequence("a", replace(SAMPLED, top_k=most)), 14)
        (draft,) = propose(drafter(model, tree), query)
        assert max(len(draft.children(node)) for node in range(len(draft) + 1)) == most
        assert draft.is_chain is (most == 1)
        assert draft.depth == 3
