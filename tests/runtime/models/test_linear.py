"""Both forms of a linear layer compute the same, and the packed one does not mix rows."""

import pytest
import torch
import torch.nn.functional as F

from twinflow.runtime.models.linear import LinearFactory, PackedLinear, PlainLinear
from twinflow.runtime.row_tile import RowTile, find_row_tile

CPU = torch.device("cpu")
needs_packing = pytest.mark.skipif(
    not PackedLinear.supports(torch.float32, CPU), reason="this build of torch has no oneDNN"
)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("variant", [PlainLinear, pytest.param(PackedLinear, marks=needs_packing)])
def test_computes_the_product(variant: type[PlainLinear | PackedLinear], bias: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(37, 50, generator=generator)
    offset = torch.randn(37, generator=generator) if bias else None
    linear = variant(weight, offset)
    assert (linear.in_features, linear.out_features) == (50, 37)
    for count in (1, 3, 64):
        rows = torch.randn(count, 50, generator=generator)
        torch.testing.assert_close(linear(rows), F.linear(rows, weight, offset))


@needs_packing
@pytest.mark.parametrize("shape", [(96, 64), (37, 50), (257, 18), (33, 130)])
def test_packed_rows_are_independent_from_the_first_on(shape: tuple[int, int]) -> None:
    linear = LinearFactory().create(torch.randn(shape))
    assert isinstance(linear, PackedLinear)
    assert find_row_tile([linear.kernel()]) == RowTile(1, batch_invariant=True)


def test_bfloat16_has_a_form_on_every_machine() -> None:
    weight = torch.randn(24, 16).bfloat16()
    rows = torch.randn(5, 16).bfloat16()
    found = LinearFactory().create(weight)(rows)
    torch.testing.assert_close(found, F.linear(rows, weight))


@needs_packing
@pytest.mark.parametrize("width", [576, 1536, 4000])
def test_packed_rows_are_as_exact_as_plain_ones(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, width, generator=generator) / width**0.5
    rows = torch.randn(64, width, generator=generator)
    exact = rows.double() @ weight.double().T

    def error(found: torch.Tensor) -> float:
        return float((found.double() - exact).pow(2).mean().sqrt())

    assert error(PackedLinear(weight, None)(rows)) < 1.5 * error(F.linear(rows, weight))


class CarelessLinear(PlainLinear):
    """Fast, but its result depends on the number of rows."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return super().__call__(rows) + 1e-3 * len(rows)


def test_a_form_that_mixes_rows_is_not_chosen() -> None:
    factory = LinearFactory((CarelessLinear, PackedLinear, PlainLinear))
    for _ in range(2):
        linear = factory.create(torch.randn(32, 48), torch.randn(32))
        assert isinstance(linear, (PackedLinear, PlainLinear))
        assert not isinstance(linear, CarelessLinear)
    assert factory.row_tile == find_row_tile([linear.kernel()])


def test_the_fastest_form_is_chosen_when_all_mix_rows() -> None:
    factory = LinearFactory((CarelessLinear,))
    factory.create(torch.randn(32, 48))
    assert factory.row_tile == RowTile(1, batch_invariant=False)
