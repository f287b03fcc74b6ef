"""What a transfer consists of: units in range, each cell once, in any order."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.kv_pages import SMALL_LAYER_BYTES, SMALL_LAYOUT

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.kv_part import KVPart
from twinflow.parallel.links.manifest import (
    TransferLedger,
    TransferManifest,
    Unit,
    choose_layers_per_unit,
    layer_units,
)
from twinflow.protos.errors import HandoffError

# Blocks 10 to 14 of a model with 6 layers, in units of 4 and 2 layers.
MANIFEST = TransferManifest("t1", SMALL_LAYOUT, first_block=10, num_blocks=5, layers_per_unit=4)
UNIT = Unit(index=0, first_block=10, num_blocks=2, first_layer=0, num_layers=4)
UNIT_BYTES = 4 * SMALL_LAYER_BYTES


def test_layer_units_cover_every_layer_once() -> None:
    assert layer_units(6, 4) == [(0, 4), (4, 2)]
    assert layer_units(6, 6) == [(0, 6)]
    assert layer_units(3, 1) == [(0, 1), (1, 1), (2, 1)]
    with pytest.raises(ValueError, match="6 layers in units of 0"):
        layer_units(6, 0)


@pytest.mark.parametrize(
    ("num_layers", "layer_bytes", "expected"),
    [
        (30, 24576, 6),  # six layers pass 128 KiB
        (32, 256 * 1024, 1),  # one layer is enough
        (4, 1024, 2),  # never enough, but two units
        (5, 1024, 3),
        (1, 1024, 1),  # two units are not possible
        (13, 32768, 4),  # at least four layers: 4 + 4 + 4 + 1
        (9, 32768, 3),  # four are enough, 3 + 3 + 3 is more even than 4 + 4 + 1, and as many
    ],
)
def test_layers_per_unit_are_few_but_worth_a_message(
    num_layers: int, layer_bytes: int, expected: int
) -> None:
    parts = (KVPart("large", 2, layer_bytes // 8), KVPart("small", 1, 1))
    layout = KVLayout(num_layers, 1, "float32", parts, "anything")
    assert layout.layer_bytes(0) == layer_bytes
    assert choose_layers_per_unit(layout, 128 * 1024) == expected


def test_a_unit_of_the_manifest_is_accepted() -> None:
    MANIFEST.check_unit(UNIT, UNIT_BYTES, 2)
    tail = Unit(index=9, first_block=13, num_blocks=2, first_layer=4, num_layers=2)
    MANIFEST.check_unit(tail, 2 * SMALL_LAYER_BYTES, 2)
    assert MANIFEST.num_messages == 10
    assert MANIFEST.num_bytes == 5 * SMALL_LAYOUT.block_bytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": -1}, "unit -1, there are at most 10"),
        ({"index": 10}, "unit 10, there are at most 10"),
        ({"first_block": 9}, r"blocks 9 \+ 2, the transfer has 10 \+ 5"),
        ({"first_block": 14}, r"blocks 14 \+ 2"),
        ({"num_blocks": 0}, r"blocks 10 \+ 0"),
        ({"num_blocks": -1}, r"blocks 10 \+ -1"),
        ({"num_blocks": 2**40}, r"blocks 10 \+ 1099511627776"),
        ({"first_layer": 2}, r"layers 2 \+ 4, not a unit of 4 of 6"),
        ({"first_layer": -4}, r"layers -4 \+ 4"),
        ({"first_layer": 8}, r"layers 8 \+ 4"),
        ({"num_layers": 6}, r"layers 0 \+ 6"),
        ({"part": 1}, "is of part 1, the layout has 1"),
        ({"part": -1}, "is of part -1, the layout has 1"),
        ({"first_layer": 4}, r"layers 4 \+ 4"),
        ({"block_step": 2}, r"blocks 10 \+ 2, the transfer has 10 \+ 5 by 1"),
    ],
)
def test_a_unit_out_of_range_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(HandoffError, match=f"transfer t1: unit .*{message}|{message}"):
        MANIFEST.check_unit(replace(UNIT, **change), UNIT_BYTES, 2)


def test_every_other_block_can_be_transferred() -> None:
    manifest = replace(MANIFEST, first_block=11, num_blocks=3, block_step=2)
    assert list(manifest.blocks) == [11, 13, 15]
    unit = replace(UNIT, first_block=13, block_step=2)
    assert list(unit.blocks) == [13, 15]
    manifest.check_unit(unit, UNIT_BYTES, 2)
    assert manifest.first_cell(unit) == 1
    assert manifest.seeds(unit)[0] == MANIFEST.seeds(replace(UNIT, first_block=13))[0]
    for change in ({"first_block": 12}, {"first_block": 15}, {"block_step": 1}):
        with pytest.raises(HandoffError, match=r"the transfer has 11 \+ 3 by 2"):
            manifest.check_unit(replace(unit, **change), UNIT_BYTES, 2)


@pytest.mark.parametrize("wrong", [UNIT_BYTES + 1, UNIT_BYTES - 1, 0, -1, 2**62])
def test_a_unit_of_another_size_is_refused(wrong: int) -> None:
    with pytest.raises(HandoffError, match=f"has {wrong} bytes per block, the layout makes it"):
        MANIFEST.check_unit(UNIT, wrong, 2)


def test_a_unit_without_a_digest_for_each_block_is_refused() -> None:
    with pytest.raises(HandoffError, match="3 digests for 2 blocks"):
        MANIFEST.check_unit(UNIT, UNIT_BYTES, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transfer_id": ""}, "a transfer id has 1 to 128 characters"),
        ({"transfer_id": "x" * 129}, "a transfer id has 1 to 128 characters"),
        ({"num_blocks": 0}, r"blocks 10 \+ 0 by 1 are no range"),
        ({"first_block": -1}, r"blocks -1 \+ 5 by 1 are no range"),
        ({"block_step": 0}, r"blocks 10 \+ 5 by 0 are no range"),
        ({"layers_per_unit": 0}, "0 layers per unit, the model has 6"),
        ({"layers_per_unit": 7}, "7 layers per unit, the model has 6"),
        ({"num_blocks": 2**31}, "messages, 536870912 are possible"),
    ],
)
def test_a_manifest_that_makes_no_transfer_is_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(HandoffError, match=message):
        replace(MANIFEST, **change)  # type: ignore[arg-type]


def test_another_layout_is_refused() -> None:
    MANIFEST.check_layout(SMALL_LAYOUT.digest())
    other = replace(SMALL_LAYOUT, dtype="bfloat16")
    with pytest.raises(HandoffError, match=r"transfer t1: KV layout 'heads:.*, ours is 'heads:"):
        MANIFEST.check_layout(other.digest())


def all_units(manifest: TransferManifest, cuts: set[int]) -> list[Unit]:
    """Units of a whole transfer; `cuts` are the blocks that begin a new run."""
    last = manifest.first_block + manifest.num_blocks
    starts = sorted({manifest.first_block, *cuts})
    runs = list(zip(starts, [*starts[1:], last], strict=True))
    layers = layer_units(manifest.layout.num_layers, manifest.layers_per_unit)
    parts = range(len(manifest.layout.parts))
    places = [(run, layer, part) for run in runs for layer in layers for part in parts]
    return [
        Unit(index, run[0], run[1] - run[0], layer[0], layer[1], part)
        for index, (run, layer, part) in enumerate(places)
    ]


@given(st.data())
def test_units_in_any_order_and_cut_complete_a_transfer(data: st.DataObject) -> None:
    layout = KVLayout.of_heads(
        num_layers=data.draw(st.integers(1, 7)),
        kv_heads=6,
        head_dim=8,
        block_size=4,
        dtype="float32",
        parts=data.draw(st.sampled_from([1, 2, 3])),
    )
    manifest = TransferManifest(
        "t",
        layout,
        first_block=data.draw(st.integers(0, 5)),
        num_blocks=data.draw(st.integers(1, 6)),
        layers_per_unit=data.draw(st.integers(1, layout.num_layers)),
    )
    blocks = st.integers(manifest.first_block, manifest.first_block + manifest.num_blocks - 1)
    units = data.draw(st.permutations(all_units(manifest, data.draw(st.sets(blocks)))))
    ledger = TransferLedger(manifest)
    cells: list[int] = []
    under_way: list[Unit] = []
    for unit in units:
        manifest.check_unit(unit, manifest.message_bytes(unit), unit.num_blocks)
        ledger.admit(unit)
        under_way.append(unit)
        first = manifest.first_cell(unit)
        cells += range(first, first + unit.num_blocks)
        if data.draw(st.booleans()):
            ledger.record(under_way.pop(0).index)
        ledger.check_integrity()
    assert ledger.missing == sum(unit.num_blocks for unit in under_way)
    for unit in under_way:
        assert not ledger.complete
        ledger.record(unit.index)
    assert ledger.complete
    # Tags follow from cells: each is used once, and they fill the range the link reserved.
    assert sorted(cells) == list(range(manifest.num_messages))
    ledger.check_integrity()


def test_a_duplicate_is_refused_before_and_after_it_arrived() -> None:
    ledger = TransferLedger(MANIFEST)
    ledger.admit(UNIT)
    with pytest.raises(HandoffError, match="unit 0 a second time"):
        ledger.admit(UNIT)
    ledger.record(0)
    with pytest.raises(HandoffError, match="unit 0 a second time"):
        ledger.admit(UNIT)
    with pytest.raises(HandoffError, match="unit 0 is not under way"):
        ledger.record(0)
    assert ledger.missing == MANIFEST.num_messages - 2
    ledger.check_integrity()


def test_an_overlap_is_refused_before_and_after_the_other_unit_arrived() -> None:
    ledger = TransferLedger(MANIFEST)
    ledger.admit(UNIT)
    overlapping = replace(UNIT, index=1, first_block=11)
    message = "unit 1 overlaps another at block 11, layer 0"
    with pytest.raises(HandoffError, match=message):
        ledger.admit(overlapping)
    ledger.record(0)
    with pytest.raises(HandoffError, match=message):
        ledger.admit(overlapping)
    ledger.admit(replace(UNIT, index=1, first_layer=4, num_layers=2))  # other layers
    ledger.check_integrity()
