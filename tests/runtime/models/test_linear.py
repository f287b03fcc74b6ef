"""Both forms of a linear layer compute the same, and the packed one does not mix rows."""

import pytest
import torch
import torch.nn.functional as F

from twinflow.runtime.models.linear import PackedLinear, PlainLinear, create_linear
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
    linear = create_linear(torch.randn(shape))
    assert isinstance(linear, PackedLinear)
    assert find_row_tile([linear.kernel()]) == RowTile(1, batch_invariant=True)


def test_bfloat16_has_a_form_on_every_machine() -> None:
    weight = torch.randn(24, 16).bfloat16()
    rows = torch.randn(5, 16).bfloat16()
    found = create_linear(weight)(rows)
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
