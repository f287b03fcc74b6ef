"""The invariants of a step with proposals fire when they are broken."""

import dataclasses
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from tests.support.engines import EngineSpec, create_request

from twinflow.runtime.executor import Work
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.speculative.draft import Draft
from twinflow.runtime.speculative.invariants import check_step
from twinflow.runtime.step_plan import RowGroup, RowKind
from twinflow.runtime.tree_branches import open_branches

TREE = Draft((11, 12, 13, 14, 15), (0, 0, 1, 2, 3))
SIZE = EngineSpec().block_size


def prepared(length: int = 6) -> tuple[Work, BlockManager]:
    """A tree that is about to be verified, with nodes that lie in a copied block."""
    blocks = BlockManager(30, SIZE, model_fingerprint="model", layout_digest="layout")
    request = create_request(length, max_tokens=20)
    blocks.open(request, blocks.match(request))
    request.output_token_ids.append(1)
    request.num_computed = request.num_tokens - 1
    branches = open_branches(blocks, request, TREE)
    blocks.publish(request)
    group = RowGroup(
        request.request_id, request.num_computed, 6, 0, 4, RowKind.VERIFY, samples=True, drafted=5
    )
    table = blocks.blocks(request.request_id)
    return Work(request, group, table, TREE, branches), blocks


@pytest.mark.parametrize("length", range(1, 10))
def test_a_tree_that_is_laid_out_by_the_engine_is_right(length: int) -> None:
    work, blocks = prepared(length)
    check_step([work], blocks)


def positions(work: Work) -> Work:
    work.request.num_computed -= 1
    return work


def length(work: Work) -> Work:
    return replace(
        work, request=create_request(6, max_tokens=2, output_token_ids=[1], num_computed=6)
    )


def nodes(work: Work) -> Work:
    return replace(work, draft=work.draft.shortened(4))


def missing_row(work: Work) -> Work:
    return replace(work, branches=work.branches[:-1])


def lost_ancestor(work: Work) -> Work:
    *others, last = work.branches
    orphan = dataclasses.replace(last, ancestors=last.ancestors[1:])
    return replace(work, branches=[*others, orphan])


def same_blocks(work: Work) -> Work:
    first, second, *others = work.branches
    own = dataclasses.replace(second, blocks=first.blocks[: len(second.blocks)])
    return replace(work, branches=[first, own, *others])


def other_prefix(work: Work) -> Work:
    first, second, *others = work.branches
    wrong = dataclasses.replace(second, blocks=(29, *second.blocks[1:]))
    return replace(work, branches=[first, wrong, *others])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (positions, "tokens and KV of"),
        (length, "behind its last token"),
        (nodes, "rows for 5 other nodes"),
        (missing_row, "for its nodes"),
        (lost_ancestor, "and not its ancestor"),
        (same_blocks, "are both written to"),
        (other_prefix, "has lost blocks of its sequence"),
    ],
)
def test_what_is_broken_is_seen(break_it: Callable[[Work], Work], message: str) -> None:
    work, blocks = prepared()
    with pytest.raises(AssertionError, match=message):
        check_step([break_it(work)], blocks)


def test_slots_of_others_and_published_blocks_are_seen() -> None:
    work, blocks = prepared()
    twin = replace(work, request=dataclasses.replace(work.request, request_id="other"))
    with pytest.raises(AssertionError, match="write the slot"):
        check_step([work, twin], blocks)
    work.request.num_computed = work.request.num_tokens + 2  # as if proposals were its own
    work.request.output_token_ids += [7, 7]
    blocks.publish(work.request)
    del work.request.output_token_ids[-2:]
    work.request.num_computed = work.request.num_tokens - 1
    with pytest.raises(AssertionError, match="which others may read"):
        check_step([work], blocks)
