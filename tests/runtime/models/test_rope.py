"""Rotary embedding: the table, the rotation, and what `dynamic` scaling promises.

That the frequencies are those of transformers is tested in `test_parity`.
"""

from dataclasses import replace

import pytest
import torch
from tests.support.tiny_models import ROPE_SCALINGS, tiny_config

from twinflow.runtime.models.config import RopeScaling
from twinflow.runtime.models.rope import RotaryTable, frequencies, rotate

CPU = torch.device("cpu")


def lookup(table: RotaryTable, positions: list[int]) -> torch.Tensor:
    cos, sin = table.lookup(torch.tensor(positions), max(positions) + 1)
    return torch.cat((cos, sin), dim=-1)


@pytest.mark.parametrize("scaling", [None, *ROPE_SCALINGS.values()])
def test_entries_do_not_depend_on_how_the_table_grew(scaling: RopeScaling | None) -> None:
    config = replace(tiny_config(), rope_scaling=scaling)
    grown, at_once = RotaryTable(config, CPU), RotaryTable(config, CPU)
    lookup(grown, [3])
    lookup(grown, [1500])
    positions = [0, 1, 127, 128, 1023, 1024, 1500, 3000]
    assert torch.equal(lookup(grown, positions), lookup(at_once, positions))


def test_rotation_turns_pairs_by_position_times_frequency() -> None:
    config = tiny_config()
    heads = torch.randn(2, 3, config.head_dim, dtype=torch.float64)
    cos, sin = RotaryTable(config, CPU).lookup(torch.tensor([5, 90]), 91)
    rotated = rotate(heads, cos, sin)
    half = config.head_dim // 2
    rates = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    for row, position in enumerate((5, 90)):
        turn = torch.polar(torch.ones(half, dtype=torch.float64), position * rates)
        expected = torch.complex(heads[row, :, :half], heads[row, :, half:]) * turn
        found = torch.complex(rotated[row, :, :half], rotated[row, :, half:])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_products_of_rotated_heads_depend_on_the_distance() -> None:
    config = tiny_config(rope_scaling=ROPE_SCALINGS["llama3"])
    table = RotaryTable(config, CPU)
    query, key = torch.randn(2, 1, 1, config.head_dim)

    def product(at: int, other: int) -> torch.Tensor:
        ends = [table.lookup(torch.tensor([position]), position + 1) for position in (at, other)]
        return (rotate(query, *ends[0]) * rotate(key, *ends[1])).sum()

    torch.testing.assert_close(product(40, 13), product(340, 313), atol=1e-4, rtol=1e-4)


def test_dynamic_scaling_stretches_each_position_to_the_length_it_ends() -> None:
    scaling = ROPE_SCALINGS["dynamic"]
    config = tiny_config(rope_scaling=scaling)
    trained = scaling.original_max_position
    assert trained is not None
    plain = frequencies(tiny_config(), torch.tensor([0]))
    found = frequencies(config, torch.tensor([0, trained - 1, trained, 4 * trained - 1]))
    torch.testing.assert_close(found[:2], plain.expand(2, -1))
    assert (found[2, 1:] < plain[0, 1:]).all()
    dim = config.head_dim
    theta = config.rope_theta * (2.0 * 4 - 1.0) ** (dim / (dim - 2))
    expected = theta ** (-torch.arange(0, dim, 2) / dim)
    torch.testing.assert_close(found[3], expected)
