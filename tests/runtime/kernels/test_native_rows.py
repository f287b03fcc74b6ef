"""Operations on rows in C++ against those in torch: equal within rounding, alone as in company."""

from collections.abc import Callable

import pytest
import torch
from tests.support.kernels import native_library
from torch import Tensor

from twinflow.runtime.kernels.base import HeadRotation, Kernels
from twinflow.runtime.kernels.native import NativeKernels
from twinflow.runtime.kernels.plain import TorchKernels

WIDTHS = [1, 16, 18, 576]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def rotation(rows: int, kv_heads: int, heads: int, dim: int, norm: bool) -> HeadRotation:
    """Angles as `RotaryTable.lookup` lays them out."""
    angles = random(rows, 1, dim // 2)
    cos, sin = angles.cos(), angles.sin()
    cos, sin = torch.cat((cos, cos, -sin, sin), dim=-1).chunk(2, dim=-1)
    gain = random(heads + kv_heads, dim) if norm else None
    return HeadRotation(cos, sin, kv_heads, gain, 1e-5, 0.125)


def both(run: Callable[[Kernels], Tensor]) -> tuple[Tensor, Tensor]:
    return run(NativeKernels(native_library())), run(TorchKernels())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", WIDTHS)
def test_norm_of_a_sum(width: int, dtype: torch.dtype) -> None:
    weight = random(width).to(dtype)
    states = []

    def run(kernels: Kernels) -> Tensor:
        hidden = random(5, width).to(dtype)
        states.append(hidden)
        return kernels.add_norm(hidden, 3 * random(5, width).to(dtype), weight, 1e-5)

    found, expected = both(run)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(*states)


def test_norm_without_a_sum() -> None:
    hidden = random(5, 40)
    before = hidden.clone()
    found, expected = both(lambda kernels: kernels.add_norm(hidden, None, random(40), 1e-5))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", WIDTHS)
def test_gated_activation(width: int, dtype: torch.dtype) -> None:
    gate_up = (8 * random(7, 2 * width)).to(dtype)
    found, expected = both(lambda kernels: kernels.gated_silu(gate_up))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=2e-6)


def test_the_exponential_over_its_whole_range() -> None:
    """silu(x) is x / (1 + exp(-x))."""
    gate = torch.linspace(-100, 100, 20001)
    gate_up = torch.stack((gate, torch.ones(len(gate)))).reshape(1, -1)
    found = NativeKernels(native_library()).gated_silu(gate_up)[0].double()
    expected = gate.double() / (1 + (-gate.double()).exp())
    torch.testing.assert_close(found, expected, atol=1e-35, rtol=5e-7)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(6, 2, 16), (7, 1, 18), (3, 3, 64)])
def test_rotation(heads: int, kv_heads: int, dim: int, norm: bool) -> None:
    how = rotation(5, kv_heads, heads, dim, norm)
    changed = []

    def run(kernels: Kernels) -> Tensor:
        rows = random(5, heads + 2 * kv_heads, dim)
        queries = kernels.rotate_heads(rows, how)
        changed.append(rows[:, heads:])
        return queries

    found, expected = both(run)
    tolerance = 1e-5 if norm else 0.0
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(*changed, atol=tolerance, rtol=tolerance)


def test_a_row_is_the_same_bits_in_any_company() -> None:
    kernels = NativeKernels(native_library())
    hidden, weight = random(300, 576), random(576)

    def norm(rows: Tensor) -> Tensor:
        return kernels.add_norm(rows.clone(), rows * 2, weight, 1e-5)

    runs: tuple[Callable[[Tensor], Tensor], ...] = (norm, kernels.gated_silu)
    for run in runs:
        whole = run(hidden)
        for first, count in ((0, 1), (7, 1), (299, 1), (10, 64), (100, 150)):
            assert torch.equal(run(hidden[first : first + count]), whole[first : first + count])
