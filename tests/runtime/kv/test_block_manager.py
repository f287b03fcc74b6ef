"""Block tables against a model that remembers what each block was filled with."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.support.engines import create_request

from twinflow.runtime.kv.block_manager import BlockManager, PrefixMatch
from twinflow.runtime.request import Request

BLOCK = 2


def create_manager(
    num_blocks: int = 17,
    block_size: int = BLOCK,
    *,
    caching: bool = True,
    share_generated: bool = True,
) -> BlockManager:
    """A manager of one model's blocks."""
    return BlockManager(
        num_blocks,
        block_size,
        model_fingerprint="model",
        layout_digest="layout",
        enable_prefix_caching=caching,
        share_generated=share_generated,
    )


def admit(manager: BlockManager, request: Request) -> PrefixMatch:
    """What an engine does when a request is admitted, and all of its tokens computed."""
    match = manager.match(request)
    manager.open(request, match)
    manager.grow(request.request_id, request.num_tokens)
    request.num_computed = request.num_tokens
    manager.publish(request)
    return match


class BlockManagerMachine(RuleBasedStateMachine):
    """Sequences from a small alphabet share, grow, end and start again.

    `filled` says which salt and which tokens were last computed into a block. A match must lead to
    blocks that were filled with the sequence's own beginning.
    """

    @initialize(num_blocks=st.integers(4, 14))
    def start(self, num_blocks: int) -> None:
        self.manager = create_manager(num_blocks)
        self.live: list[Request] = []
        self.filled: dict[int, tuple[str, Sequence[int]]] = {}

    def fill(self, request: Request, num_computed: int) -> None:
        """Compute up to a position: full blocks hold the whole sequence up to their end."""
        request.num_computed = num_computed
        blocks = self.manager.blocks(request.request_id)
        for index in range(num_computed // BLOCK):
            ours = (request.cache_salt, request.token_ids[: (index + 1) * BLOCK])
            # Only blocks that it alone holds are written.
            assert self.filled.get(blocks[index]) == ours or not self.shared(blocks[index])
            self.filled[blocks[index]] = ours

    def shared(self, block: int) -> bool:
        holders = sum(block in self.manager.blocks(r.request_id) for r in self.live)
        return holders > 1

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=12),
        salt=st.sampled_from(["", "a"]),
        probe=st.booleans(),
    )
    def admit(self, prompt: list[int], salt: str, probe: bool) -> None:
        request = create_request(prompt, cache_salt=salt, probe=probe)
        match = self.manager.match(request)
        assert match == self.manager.match(request)
        assert match.num_tokens < len(prompt)
        assert not (probe and match.blocks)
        for index, block in enumerate(match.blocks):
            assert self.filled[block] == (salt, prompt[: (index + 1) * BLOCK])
        missing = self.manager.blocks_for(len(prompt)) - len(match.blocks)
        if missing + match.num_idle > self.manager.num_idle:
            return
        idle = self.manager.num_idle
        self.manager.open(request, match)
        self.manager.grow(request.request_id, len(prompt))
        assert self.manager.num_idle == idle - missing - match.num_idle
        request.num_computed = match.num_tokens
        self.live.append(request)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        """A chunk of a sequence is computed, and its full blocks can be found from now on."""
        request = data.draw(st.sampled_from(self.live))
        num_computed = data.draw(st.integers(request.num_computed, request.num_tokens))
        self.fill(request, num_computed)
        self.manager.publish(request)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), token=st.integers(0, 1))
    def append(self, data: st.DataObject, token: int) -> None:
        request = data.draw(st.sampled_from(self.live))
        needed = self.manager.blocks_for(request.num_tokens + 1)
        missing = needed - self.manager.num_held(request.request_id)
        if missing <= self.manager.num_idle:
            request.output_token_ids.append(token)
            self.manager.grow(request.request_id, request.num_tokens)
            assert self.manager.num_held(request.request_id) == needed

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        request = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        idle, gain = self.manager.num_idle, self.manager.num_reclaimable(request.request_id)
        self.manager.free(request.request_id)
        assert self.manager.num_idle == idle + gain

    @invariant()
    def everything_is_accounted_for(self) -> None:
        self.manager.check_integrity()
        assert self.manager.holders == {request.request_id for request in self.live}
        for request in self.live:
            # Counted now, so that `free` finds out whether a count that is kept is still true.
            self.manager.num_reclaimable(request.request_id)

    def teardown(self) -> None:
        for request in self.live:
            self.manager.free(request.request_id)
        self.manager.check_integrity()
        assert self.manager.num_idle == self.manager.num_blocks


TestBlockManagerMachine = BlockManagerMachine.TestCase
TestBlockManagerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class TestMatch:
    """What of a sequence is found."""

    def test_never_the_last_token(self) -> None:
        manager = create_manager()
        first = create_request([1, 2, 3, 4])
        admit(manager, first)
        assert manager.match(create_request([1, 2, 3, 4])).num_tokens == 2
        assert manager.match(create_request([1, 2, 3, 4, 5])).num_tokens == 4

    def test_only_what_is_computed(self) -> None:
        manager = create_manager()
        request = create_request([1, 2, 3, 4, 5, 6])
        manager.open(request, manager.match(request))
        manager.grow(request.request_id, 6)
        request.num_computed = 3
        manager.publish(request)
        assert manager.match(create_request([1, 2, 3, 4, 5, 6])).num_tokens == 2

    def test_idle_blocks_of_a_match_are_counted_once_they_are_idle(self) -> None:
        manager = create_manager()
        request = create_request([1, 2, 3, 4, 5])
        admit(manager, request)
        again = create_request([1, 2, 3, 4, 5])
        assert manager.match(again).num_idle == 0
        manager.free(request.request_id)
        assert manager.match(again).num_idle == 2

    def test_generated_tokens_are_found_too(self) -> None:
        """The next turn of a conversation begins with this one's answer."""
        manager = create_manager()
        request = create_request([1, 2, 3])
        request.output_token_ids = [4, 5]
        admit(manager, request)
        assert manager.match(create_request([1, 2, 3, 4, 5, 6])).num_tokens == 4

    @pytest.mark.parametrize(
        ("change", "cached"), [({}, 4), ({"cache_salt": "x"}, 0), ({"probe": True}, 0)]
    )
    def test_salts_and_probes_stay_apart(self, change: dict[str, Any], cached: int) -> None:
        manager = create_manager()
        admit(manager, create_request([1, 2, 3, 4, 5]))
        assert manager.match(create_request([1, 2, 3, 4, 5], **change)).num_tokens == cached

    def test_a_probe_leaves_nothing_behind(self) -> None:
        manager = create_manager()
        admit(manager, create_request([1, 2, 3, 4, 5], probe=True))
        assert manager.match(create_request([1, 2, 3, 4, 5])) == PrefixMatch()

    def test_nothing_without_prefix_caching(self) -> None:
        manager = create_manager(caching=False)
        admit(manager, create_request([1, 2, 3, 4, 5]))
        assert manager.match(create_request([1, 2, 3, 4, 5])) == PrefixMatch()


class TestCounters:
    """Hit rates are of what was looked for."""

    def test_queries_and_hits(self) -> None:
        manager = create_manager()
        for _ in range(2):
            admit(manager, create_request([1, 2, 3, 4, 5]))
        assert (manager.counters.queries, manager.counters.hits) == (10, 4)

    def test_the_worker_that_computes_a_sequence_counts_it(self) -> None:
        manager = create_manager()
        admit(manager, create_request([1, 2, 3, 4, 5]))
        request = create_request([1, 2, 3, 4, 5])
        manager.open(request, manager.match(request), computed_elsewhere=True)
        assert (manager.counters.queries, manager.counters.hits) == (5, 0)

    @pytest.mark.parametrize(("caching", "probe"), [(False, False), (True, True)])
    def test_nothing_is_looked_for_without_caching(self, caching: bool, probe: bool) -> None:
        manager = create_manager(caching=caching)
        admit(manager, create_request([1, 2, 3], probe=probe))
        assert (manager.counters.queries, manager.counters.hits) == (0, 0)


class TestTables:
    """Opening, growing and freeing."""

    def test_what_does_not_fit_changes_nothing(self) -> None:
        manager = create_manager(num_blocks=4)
        request = create_request([1])
        manager.open(request, PrefixMatch())
        with pytest.raises(ValueError, match="4 blocks wanted, 3 are idle"):
            manager.grow(request.request_id, 8)
        assert manager.num_held(request.request_id) == 0
        assert manager.num_idle == 3

    def test_a_table_is_opened_once(self) -> None:
        manager = create_manager()
        request = create_request([1])
        manager.open(request, PrefixMatch())
        with pytest.raises(ValueError, match="already has a block table"):
            manager.open(request, PrefixMatch())

    def test_unknown_sequences_hold_nothing(self) -> None:
        manager = create_manager()
        manager.free("nobody")
        assert list(manager.blocks("nobody")) == []
        assert manager.num_reclaimable("nobody") == 0

    @pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (2, 1), (3, 2)])
    def test_blocks_for(self, num_tokens: int, num_blocks: int) -> None:
        assert create_manager().blocks_for(num_tokens) == num_blocks


def test_generated_tokens_are_shared_only_if_they_may_be() -> None:
    for share_generated in (True, False):
        manager = create_manager(share_generated=share_generated)
        first = create_request([1, 2, 3, 4, 5])
        first.output_token_ids = [6, 7, 8]
        admit(manager, first)
        # Nor may what was computed as a prompt serve as generated.
        same = create_request([1, 2, 3])
        same.output_token_ids = [4, 5, 6, 7, 8, 9]
        later = create_request([1, 2, 3, 4, 5, 6, 7, 8, 9])
        found = [manager.match(request).num_tokens for request in (same, later)]
        assert found == ([8, 8] if share_generated else [2, 4])
        manager.free(first.request_id)
        manager.check_integrity()
