"""Grouped products of experts on a CUDA device, against the products one by one on the CPU."""

import pytest
import torch

from twinflow.runtime.models.expert_products import (
    GroupedExperts,
    LoopedExperts,
    create_products,
)
from twinflow.runtime.models.linear import LinearFactory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HIDDEN, INNER, EXPERTS = 256, 384, 8


def weights(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Of experts, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    gate_up = torch.randn(EXPERTS, 2 * INNER, HIDDEN, generator=generator) / HIDDEN**0.5
    down = torch.randn(EXPERTS, HIDDEN, INNER, generator=generator) / INNER**0.5
    return gate_up.to(dtype), down.to(dtype)


@pytest.mark.parametrize("sizes", [[8, 0, 16, 32, 0, 0, 8, 64], [0] * 7 + [32], [128] * 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_are_those_of_the_cpu(sizes: list[int], dtype: torch.dtype) -> None:
    gate_up, down = weights(dtype)
    rows = torch.randn(sum(sizes) + 1, HIDDEN).to(dtype)
    groups = torch.tensor(sizes)
    expected = LoopedExperts(gate_up, down, LinearFactory())(rows, groups)
    products = create_products(gate_up.cuda(), down.cuda(), LinearFactory())
    found = products(rows.cuda(), groups.cuda()).cpu()
    tolerance = 1e-4 if dtype is torch.float32 else 3e-2
    used = sum(sizes)
    torch.testing.assert_close(found[:used], expected[:used], atol=tolerance, rtol=tolerance)


def test_bfloat16_has_grouped_products() -> None:
    gate_up, down = (weight.cuda() for weight in weights(torch.bfloat16))
    assert GroupedExperts.supports(gate_up, down)
    assert not GroupedExperts.supports(gate_up.float(), down.float())


def test_groups_do_not_influence_each_other() -> None:
    gate_up, down = (weight.cuda() for weight in weights(torch.bfloat16))
    linears = LinearFactory()
    products = create_products(gate_up, down, linears)
    if not linears.row_tile.batch_invariant:
        pytest.skip("no form keeps rows independent on this device")
    tile = products.row_tile.rows
    rows = torch.randn(4 * tile, HIDDEN, device="cuda").bfloat16()
    alone = torch.zeros(EXPERTS, dtype=torch.int64, device="cuda")
    alone[3] = tile
    expected = products(rows[tile : 2 * tile].clone(), alone)
    together = torch.zeros_like(alone)
    together[2], together[3], together[5] = tile, tile, 2 * tile
    assert torch.equal(products(rows, together)[tile : 2 * tile], expected)
