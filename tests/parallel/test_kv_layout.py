"""Layouts name their parts, and what differs in meaning differs in digest."""

from dataclasses import replace

import pytest

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.kv_part import KVPart


def heads(parts: int = 1, **changes: int | str) -> KVLayout:
    fields: dict[str, int | str] = {
        "num_layers": 2,
        "kv_heads": 4,
        "head_dim": 8,
        "block_size": 16,
        "dtype": "bfloat16",
    }
    return KVLayout.of_heads(**{**fields, **changes}, parts=parts)  # type: ignore[arg-type]


def test_heads_are_cut_into_parts_of_neighbours() -> None:
    assert heads().parts == (KVPart("heads 0-3", 8, 8),)
    assert heads(2).parts == (KVPart("heads 0-1", 4, 8), KVPart("heads 2-3", 4, 8))
    assert heads(1).block_bytes == heads(2).block_bytes == heads(4).block_bytes
    with pytest.raises(ValueError, match="4 KV heads cannot be cut into 3 parts"):
        heads(3)


def test_a_rank_holds_some_parts() -> None:
    whole = heads(4)
    some = whole.only(["heads 2-2", "heads 3-3"])
    assert some.parts == whole.parts[2:]
    assert some.block_bytes == whole.block_bytes // 2
    assert whole.index_of("heads 3-3") == 3
    assert some.index_of("heads 3-3") == 1
    with pytest.raises(ValueError, match="no part is named 'heads 0-0'"):
        some.only(["heads 0-0"])


def test_a_part_means_the_same_on_workers_with_other_numbers_of_ranks() -> None:
    name = ["heads 1-1"]
    assert (
        heads(4).only(name).digest()
        == heads(4).only(["heads 1-1", "heads 2-2"]).only(name).digest()
    )


@pytest.mark.parametrize(
    "other",
    [
        heads(2),
        heads(num_layers=3),
        heads(block_size=8),
        heads(dtype="float32"),
        heads(head_dim=16),
        replace(heads(), meaning="other"),
        replace(heads(), parts=(KVPart("heads 4-7", 8, 8),)),
    ],
)
def test_the_digest_covers_everything(other: KVLayout) -> None:
    assert heads().digest() == heads().digest()
    assert other.digest() != heads().digest()
    assert other.digest().startswith(f"{other.meaning}:")


def test_names_are_unique() -> None:
    part = KVPart("a", 1, 1)
    with pytest.raises(ValueError, match=r"each once, not \['a', 'a'\]"):
        KVLayout(1, 1, "float32", (part, part), "anything")
    with pytest.raises(ValueError, match=r"has parts"):
        KVLayout(1, 1, "float32", (), "anything")
