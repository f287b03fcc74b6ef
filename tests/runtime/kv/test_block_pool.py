"""The block pool against a model of it, and its edges one by one."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from twinflow.runtime.kv.block_pool import NULL_BLOCK, BlockPool


def chain(*numbers: int) -> list[bytes]:
    """Names of a prefix, one for each number."""
    return [b"%d" % number for number in numbers]


class BlockPoolMachine(RuleBasedStateMachine):
    """Holders come and go; what a name leads to is what was published under it.

    `contents` says what was last written to each block, as the names do. A name that leads to a
    block with other contents would be a wrong answer to a request.
    """

    @initialize(num_blocks=st.integers(2, 12))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.holders: list[list[int]] = []
        self.contents: dict[int, bytes] = {}
        self.published: set[bytes] = set()

    def held(self) -> set[int]:
        return {block for blocks in self.holders for block in blocks}

    @rule(count=st.integers(0, 12), first=st.integers(0, 5))
    def allocate(self, count: int, first: int) -> None:
        """A sequence takes blocks and writes to them; `first` names what it begins with."""
        idle = self.pool.num_idle
        if count > idle:
            with pytest.raises(ValueError, match=f"{count} blocks wanted, {idle} are idle"):
                self.pool.allocate(count)
            return
        blocks = self.pool.allocate(count)
        assert NULL_BLOCK not in blocks
        assert len(set(blocks)) == count
        assert not self.held() & set(blocks)
        for place, block in enumerate(blocks):
            self.contents[block] = b"%d-%d" % (first, place)
        self.holders.append(blocks)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        for block in data.draw(st.sampled_from(self.holders)):
            self.pool.publish(block, self.contents[block])
            self.published.add(self.contents[block])

    @rule(first=st.integers(0, 5), length=st.integers(0, 6))
    def share(self, first: int, length: int) -> None:
        """A sequence that begins like an earlier one takes what there is of it."""
        names = [b"%d-%d" % (first, place) for place in range(length)]
        found = self.pool.find(names)
        assert [self.contents[block] for block in found] == names[: len(found)]
        idle_before = self.pool.num_idle
        uses = self.pool.num_idle_among(found)
        self.pool.retain(found)
        assert self.pool.num_idle == idle_before - uses
        self.holders.append(found)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(blocks)

    @invariant()
    def every_block_is_accounted_for(self) -> None:
        self.pool.check_integrity(self.holders)
        assert self.pool.num_idle == self.pool.num_blocks - len(self.held())

    @invariant()
    def held_names_are_found(self) -> None:
        """What somebody holds is never evicted: its name leads to it, or to its equal."""
        for block in self.held():
            name = self.contents[block]
            if name in self.published:
                assert [self.contents[found] for found in self.pool.find([name])] in ([], [name])

    def teardown(self) -> None:
        for blocks in self.holders:
            self.pool.release(blocks)
        self.pool.check_integrity([])
        assert self.pool.num_idle == self.pool.num_blocks


TestBlockPoolMachine = BlockPoolMachine.TestCase
TestBlockPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class TestEviction:
    """Which cached prefixes go first."""

    def test_the_prefix_that_was_unused_longest(self) -> None:
        pool = BlockPool(7)
        old, new = pool.allocate(3), pool.allocate(3)
        for blocks, names in ((old, chain(1, 2, 3)), (new, chain(4, 5, 6))):
            for block, name in zip(blocks, names, strict=True):
                pool.publish(block, name)
        pool.release(old)
        pool.release(new)
        pool.retain(pool.find(chain(1, 2, 3)))
        pool.release(old)  # used again: now the other one is older
        pool.allocate(3)
        assert pool.find(chain(1, 2, 3)) == old
        assert pool.find(chain(4, 5, 6)) == []

    def test_the_end_of_a_prefix_goes_before_its_beginning(self) -> None:
        pool = BlockPool(5)
        blocks = pool.allocate(4)
        for block, name in zip(blocks, chain(1, 2, 3, 4), strict=True):
            pool.publish(block, name)
        pool.release(blocks)
        pool.allocate(2)
        assert pool.find(chain(1, 2, 3, 4)) == blocks[:2]

    def test_a_shared_block_stays_until_its_last_holder_leaves(self) -> None:
        pool = BlockPool(3)
        (block,) = pool.allocate(1)
        pool.publish(block, b"name")
        pool.retain([block])
        pool.release([block])
        pool.allocate(1)
        assert (pool.references(block), pool.num_idle) == (1, 0)
        pool.release([block])
        assert pool.find([b"name"]) == [block]


def test_the_first_block_with_a_name_keeps_it() -> None:
    pool = BlockPool(4)
    first, second = pool.allocate(2)
    pool.publish(first, b"same")
    pool.publish(second, b"same")
    pool.publish(first, b"other")
    assert pool.find([b"same"]) == [first]
    assert pool.find([b"other"]) == []
    pool.check_integrity([[first, second]])


def test_releasing_what_nobody_holds_is_refused() -> None:
    pool = BlockPool(3)
    (block,) = pool.allocate(1)
    pool.release([block])
    with pytest.raises(ValueError, match=f"block {block} has no holder"):
        pool.release([block])


def test_a_pool_without_a_block_to_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 blocks"):
        BlockPool(1)


class TestIntegrity:
    """The recount sees what is wrong."""

    def test_a_holder_that_the_pool_does_not_know(self) -> None:
        pool = BlockPool(3)
        with pytest.raises(AssertionError, match="block 2: 1 holders, count says 0"):
            pool.check_integrity([[2]])

    def test_a_leaked_block(self) -> None:
        pool = BlockPool(3)
        pool.allocate(1)
        with pytest.raises(AssertionError, match="block 1: 0 holders, count says 1"):
            pool.check_integrity([])
