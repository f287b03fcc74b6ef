"""However a prompt is computed, its units cover every cell once, and none before it is final."""

import random

import pytest

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.links.manifest import TransferLedger, TransferManifest, Unit, layer_units
from twinflow.runtime.kv_progress import KVProgress
from twinflow.workers.handoff.units import UnitPlanner

BLOCK = 4
LAYERS = 5


def manifest_of(
    num_tokens: int, first_block: int, layers_per_unit: int, step: int = 1
) -> TransferManifest:
    return TransferManifest(
        transfer_id="t",
        layout=KVLayout.of_heads(
            num_layers=LAYERS, kv_heads=1, head_dim=2, block_size=BLOCK, dtype="float32"
        ),
        first_block=first_block,
        num_blocks=len(range(first_block, -(-num_tokens // BLOCK), step)),
        layers_per_unit=layers_per_unit,
        block_step=step,
    )


def computed(
    planner: UnitPlanner, manifest: TransferManifest, start: int, end: int
) -> list[tuple[Unit, int]]:
    """The units of one chunk, each with the number of layers that were done when it came."""
    units: list[tuple[Unit, int]] = []
    for first, count in layer_units(LAYERS, manifest.layers_per_unit):
        progress = KVProgress("r", first, first + count, start, end, ())
        units += [(unit, first + count) for unit in planner.advance(progress)]
    return units


@pytest.mark.parametrize(("layers_per_unit", "step"), [(1, 1), (2, 1), (5, 1), (2, 2), (2, 4)])
@pytest.mark.parametrize("seed", range(40))
def test_every_cell_is_sent_once_and_not_before_it_is_final(
    seed: int, layers_per_unit: int, step: int
) -> None:
    rng = random.Random(seed)
    num_tokens = rng.randrange(1, 60)
    num_full = (num_tokens - 1) // BLOCK
    first_block, found = rng.randint(0, num_full), rng.randint(0, num_full) * BLOCK
    manifest = manifest_of(num_tokens, first_block, layers_per_unit, step)
    planner, ledger = UnitPlanner(manifest, num_tokens), TransferLedger(manifest)
    start = found
    while start < num_tokens:
        end = min(num_tokens, start + rng.randrange(1, 20))
        for unit, layers_done in computed(planner, manifest, start, end):
            manifest.check_unit(unit, manifest.message_bytes(unit), unit.num_blocks)
            ledger.admit(unit)
            ledger.record(unit.index)
            last_token = min(unit.blocks[-1] * BLOCK + BLOCK, num_tokens)
            done_before = last_token <= start
            done_now = last_token <= end and unit.first_layer + unit.num_layers <= layers_done
            assert done_before or done_now
        start = end
    assert ledger.complete


def test_cached_blocks_are_sent_with_the_first_layers_of_the_first_chunk() -> None:
    manifest = manifest_of(num_tokens=20, first_block=0, layers_per_unit=2)
    planner = UnitPlanner(manifest, 20)
    units = [unit for unit, done in computed(planner, manifest, 12, 16) if done == 2]
    assert units == [
        Unit(0, first_block=0, num_blocks=3, first_layer=0, num_layers=2),
        Unit(1, first_block=0, num_blocks=3, first_layer=2, num_layers=2),
        Unit(2, first_block=0, num_blocks=3, first_layer=4, num_layers=1),
        Unit(3, first_block=3, num_blocks=1, first_layer=0, num_layers=2),
    ]


def test_a_block_whose_tokens_come_in_two_chunks_is_sent_after_the_second() -> None:
    manifest = manifest_of(num_tokens=8, first_block=0, layers_per_unit=5)
    planner = UnitPlanner(manifest, 8)
    assert computed(planner, manifest, 0, 3) == []
    assert computed(planner, manifest, 3, 6) == [(Unit(0, 0, 1, 0, 5), 5)]
    assert computed(planner, manifest, 6, 8) == [(Unit(1, 1, 1, 0, 5), 5)]


def test_what_the_receiver_has_is_not_sent() -> None:
    manifest = manifest_of(num_tokens=10, first_block=2, layers_per_unit=5)
    planner = UnitPlanner(manifest, 10)
    assert computed(planner, manifest, 0, 8) == []
    assert computed(planner, manifest, 8, 10) == [(Unit(0, 2, 1, 0, 5), 5)]
