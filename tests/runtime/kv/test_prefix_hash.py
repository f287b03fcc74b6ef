"""Names of prefixes: equal exactly if everything that decides the bytes of a block is equal."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinflow.runtime.kv.prefix_hash import DIGEST_BYTES, extend_chain, prefix_root

ROOT = prefix_root("model", "layout", "")
tokens = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def names(sequence: Sequence[int], block_size: int = 4, root: bytes = ROOT) -> list[bytes]:
    """The names of all full blocks of a sequence."""
    chain: list[bytes] = []
    extend_chain(
        root,
        chain,
        lambda start, count: sequence[start : start + count],
        num_blocks=len(sequence) // block_size,
        block_size=block_size,
    )
    return chain


@given(first=tokens, second=tokens, block_size=st.sampled_from([1, 2, 4, 8]))
def test_names_agree_exactly_as_far_as_the_sequences_do(
    first: list[int], second: list[int], block_size: int
) -> None:
    ours, theirs = names(first, block_size), names(second, block_size)
    for index in range(min(len(ours), len(theirs))):
        end = (index + 1) * block_size
        assert (ours[index] == theirs[index]) == (first[:end] == second[:end])
    assert len(set(ours)) == len(ours)


@given(sequence=tokens, stops=st.lists(st.integers(0, 10), max_size=4))
def test_a_chain_can_be_extended_bit_by_bit(sequence: list[int], stops: list[int]) -> None:
    chain: list[bytes] = []
    for num_blocks in [
        *sorted(min(stop, len(sequence) // 4) for stop in stops),
        len(sequence) // 4,
    ]:
        extend_chain(
            ROOT,
            chain,
            lambda start, count: sequence[start : start + count],
            num_blocks=num_blocks,
            block_size=4,
        )
        assert len(chain) == num_blocks
    assert chain == names(sequence)


text = st.text(alphabet="ab:0\x001", max_size=4)


@given(first=st.tuples(text, text, text), second=st.tuples(text, text, text))
def test_roots_differ_by_model_layout_and_salt(
    first: tuple[str, str, str], second: tuple[str, str, str]
) -> None:
    """No way of writing one field can be mistaken for another."""
    assert (prefix_root(*first) == prefix_root(*second)) == (first == second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("a", "bc", ""), ("ab", "c", "")),
        (("a\0b", "c", ""), ("a", "b\0c", "")),
        (("1:a", "", ""), ("", "1:a", "")),
    ],
)
def test_fields_that_read_alike_when_joined(
    first: tuple[str, str, str], second: tuple[str, str, str]
) -> None:
    assert prefix_root(*first) != prefix_root(*second)


@pytest.mark.parametrize("field", [0, 1, 2])
def test_one_other_field_changes_every_name(field: int) -> None:
    identity = ["model", "layout", "salt"]
    ours = names(range(16), root=prefix_root(*identity))
    identity[field] += "x"
    theirs = names(range(16), root=prefix_root(*identity))
    assert not set(ours) & set(theirs)


def test_a_name_is_short_and_an_unfinished_block_has_none() -> None:
    assert [len(name) for name in names(range(11))] == [DIGEST_BYTES] * 2
