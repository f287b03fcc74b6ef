"""Native linear layers: the product, the same bits in any company, and no more memory than said."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from tests.support.kernels import native_library
from torch import Tensor

from twinflow.runtime.kernels.native import NativeKernels
from twinflow.runtime.kernels.native_linear import NativeForm, PanelMemory, panel_bytes
from twinflow.runtime.models.linear import Linear
from twinflow.runtime.row_tile import RowTile

# Whole panels and parts of one, whole blocks of inputs and parts of one.
SHAPES = [(64, 256), (37, 50), (1, 1), (33, 300), (96, 1537)]


def random_weight(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def random_rows(count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def make(weight: Tensor, bias: Tensor | None = None) -> Linear:
    return NativeForm(native_library())(weight, bias)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_computes_the_product(shape: tuple[int, int], dtype: torch.dtype, bias: bool) -> None:
    weight = random_weight(shape, dtype)
    offset = torch.randn(shape[0]) if bias else None
    linear = make(weight, offset)
    assert (linear.out_features, linear.in_features) == shape
    for count in (1, 2, 7, 64):
        rows = random_rows(count, shape[1])
        expected = F.linear(rows, weight.float(), offset)
        torch.testing.assert_close(linear(rows), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("width", [576, 1536, 4000])
def test_is_as_exact_as_a_plain_product(width: int) -> None:
    weight, rows = random_weight((200, width)), random_rows(64, width)
    exact = rows.double() @ weight.double().T

    def error(found: Tensor) -> float:
        return float((found.double() - exact).pow(2).mean().sqrt())

    assert error(make(weight)(rows)) < 1.5 * error(F.linear(rows, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_is_the_same_bits_in_any_company(
    shape: tuple[int, int], dtype: torch.dtype, threads: None
) -> None:
    linear = make(random_weight(shape, dtype), torch.randn(shape[0]))
    rows = random_rows(64, shape[1])
    torch.set_num_threads(1)
    expected = torch.cat([linear(rows[row : row + 1]) for row in range(64)])
    for count in (1, 2):
        torch.set_num_threads(count)
        for size in range(1, 65):
            first = (7 * size) % (65 - size)
            found = linear(rows[first : first + size].clone())
            assert torch.equal(found, expected[first : first + size]), (count, size)


def test_a_row_is_the_same_bits_in_a_long_prompt(threads: None) -> None:
    """More rows than a block keeps in the cache, and enough work for other threads."""
    linear = make(random_weight((200, 700), torch.bfloat16))
    rows = random_rows(1000, 700)
    torch.set_num_threads(2)
    found = linear(rows)
    for row in (0, 239, 240, 500, 999):
        assert torch.equal(linear(rows[row : row + 1]), found[row : row + 1])


def test_bfloat16_weights_are_not_rounded() -> None:
    weight = random_weight((40, 300), torch.bfloat16)
    rows = random_rows(5, 300)
    assert torch.equal(make(weight)(rows), make(weight.float())(rows))


def test_bfloat16_rows_come_out_as_bfloat16() -> None:
    weight, rows = random_weight((40, 30), torch.bfloat16), random_rows(3, 30).bfloat16()
    found = make(weight)(rows)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, make(weight)(rows.float()).bfloat16())


def test_no_rows_are_no_rows() -> None:
    assert make(random_weight((40, 30)))(torch.empty(0, 30)).shape == (0, 40)


def test_the_probe_agrees() -> None:
    linears = NativeKernels(native_library()).linears()
    for shape in SHAPES:
        linears.create(random_weight(shape, torch.bfloat16))
    assert linears.row_tile == RowTile(1, batch_invariant=True)


def test_the_weight_is_not_needed_any_more() -> None:
    weight, rows = random_weight((40, 30)), random_rows(3, 30)
    linear = make(weight)
    expected = linear(rows)
    weight.zero_()
    assert torch.equal(linear(rows), expected)


def test_panels_lie_side_by_side_and_do_not_overlap() -> None:
    memory = PanelMemory()
    first, second = memory.take(100), memory.take(64)
    assert second.data_ptr() - first.data_ptr() == 128
    first.fill_(1)
    second.fill_(2)
    assert bool((first == 1).all())
    assert len(memory.take(65 << 20)) == 65 << 20


def test_panels_are_as_large_as_the_weight() -> None:
    assert panel_bytes(1536, 576, torch.bfloat16) == 1536 * 576 * 2
    assert panel_bytes(33, 10, torch.float32) == 64 * 10 * 4
