"""Token recycling: what the target said is proposed again."""

from tests.support.drafted import FakeSequence, proposed

from twinflow.runtime.speculative.drafters.base import DraftQuery, LikelyNext
from twinflow.runtime.speculative.drafters.salted import BySalt
from twinflow.runtime.speculative.drafters.token_recycling import (
    RecyclingConfig,
    TokenRecyclingDrafter,
)
from twinflow.runtime.speculative.trees.config import TreeConfig


def drafter(tree: TreeConfig | None = None, nodes: int = 4) -> TokenRecyclingDrafter:
    return TokenRecyclingDrafter(RecyclingConfig(vocab_size=100, nodes=nodes, tree=tree, width=2))


def test_nothing_is_known_at_first() -> None:
    assert proposed(drafter(), FakeSequence([1, 2])) == ()


def test_prompts_tell_what_follows() -> None:
    prompt = [1, 2, 3, 1, 4, 5, 1]
    recycling = drafter(TreeConfig(width=2, depth=2), nodes=4)
    recycling.observe([LikelyNext(1, (2, 9), ""), LikelyNext(5, (7, 8), "")])
    (draft,) = recycling.propose([DraftQuery(FakeSequence(prompt, prompt_length=7), 4)])
    # What came last comes first, and before what the target has said.
    assert draft.tokens[:2] == (4, 2)
    assert proposed(recycling, FakeSequence([5], "b")) == (1, 7, 4)
    assert recycling._tables.take("")[5].tolist() == [1, 7]


def test_a_prompt_is_learned_from_once() -> None:
    recycling = drafter()
    sequence = FakeSequence([1, 2, 1], prompt_length=3)
    assert proposed(recycling, sequence) == (2, 1, 2, 1)
    recycling.observe([LikelyNext(1, (6,), "")])
    assert proposed(recycling, sequence) == (6,)
    recycling.forget(sequence)
    assert proposed(recycling, sequence) == (2, 1, 2, 1)


def test_the_likeliest_tokens_are_followed_as_far_as_they_are_known() -> None:
    recycling = drafter()
    recycling.observe([LikelyNext(1, (2, 3), ""), LikelyNext(2, (5, 1), "")])
    assert proposed(recycling, FakeSequence([9, 1])) == (2, 5)
    assert proposed(recycling, FakeSequence([9, 1]), limit=1) == (2,)
    assert proposed(recycling, FakeSequence([1, 9])) == ()


def test_what_is_said_later_counts() -> None:
    recycling = drafter()
    recycling.observe([LikelyNext(1, (2, 3), ""), LikelyNext(1, (4,), "")])
    assert proposed(recycling, FakeSequence([1])) == (4,)


def test_what_was_only_proposed_tells_what_nothing_else_does() -> None:
    recycling = drafter()
    recycling.observe([LikelyNext(1, (2, 3), ""), LikelyNext(1, (4, 5), "", true=False)])
    assert proposed(recycling, FakeSequence([1])) == (2,)
    recycling.observe([LikelyNext(2, (6, 7), "", true=False)])
    assert proposed(recycling, FakeSequence([1])) == (2, 6)
    recycling.observe([LikelyNext(2, (8, 9), "")])
    assert proposed(recycling, FakeSequence([1])) == (2, 8)


def test_trees_are_filled_by_rank() -> None:
    recycling = drafter(TreeConfig(width=2, depth=3), nodes=6)
    recycling.observe([LikelyNext(1, (2, 3), ""), LikelyNext(2, (5, 6), "")])
    (draft,) = recycling.propose([DraftQuery(FakeSequence([1]), 10)])
    # Nobody knows what follows 3 or 5, so that their children stay out.
    assert (draft.tokens, draft.parents) == ((2, 3, 5, 6), (0, 0, 1, 1))


def test_salts_learn_nothing_from_one_another() -> None:
    recycling = drafter()
    recycling.observe([LikelyNext(1, (2,), "mine")])
    assert proposed(recycling, FakeSequence([1], cache_salt="mine")) == (2,)
    assert proposed(recycling, FakeSequence([1], cache_salt="theirs")) == ()


def test_only_the_latest_salts_are_kept() -> None:
    kept: BySalt[list[int]] = BySalt(list)
    for number in range(20):
        kept.take("first").append(number)
        kept.take(str(number))
    assert len(kept) == 8
    assert kept.find("first") == list(range(20))
    assert kept.find("2") is None
