"""Experts: rows do not influence each other, padding is not routed, and traffic is counted."""

import pytest
import torch
from tests.support.expert_blocks import LAYER, make_block, moe_of, random_rows, with_experts
from tests.support.runners import FedSequence, feed, make_model, make_runner, random_tokens
from tests.support.tiny_models import EXPERT_ARCHITECTURES, LATENT_ARCHITECTURES, tiny_config
from torch import Tensor

from twinflow.parallel.ranks.base import RankGroup
from twinflow.parallel.ranks.threads import run_ranks
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.expert_products import GroupedExperts, LoopedExperts
from twinflow.runtime.models.expert_traffic import ExpertCounter, ExpertTraffic
from twinflow.runtime.models.experts import ExpertMLP
from twinflow.runtime.models.linear import LinearFactory, PackedLinear, PlainLinear
from twinflow.runtime.models.router import Router

ALL = EXPERT_ARCHITECTURES + LATENT_ARCHITECTURES


@torch.inference_mode()
def run(
    block: ExpertMLP,
    rows: Tensor,
    num_rows: int | None = None,
    counter: ExpertCounter | None = None,
) -> Tensor:
    return block(rows, len(rows) if num_rows is None else num_rows, counter)


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_is_the_same_bits_in_any_company(architecture: str, dtype: torch.dtype) -> None:
    config = tiny_config(architecture)
    linears = LinearFactory()
    block = make_block(config, dtype=dtype, linears=linears)
    if not linears.row_tile.batch_invariant:
        pytest.skip(f"the matrix products of this machine are not batch invariant in {dtype}")
    rows = random_rows(67, config).to(dtype)
    together = run(block, rows)
    for index in range(len(rows)):
        assert torch.equal(run(block, rows[index : index + 1])[0], together[index])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(2))
    assert torch.equal(run(block, rows[order]), together[order])
    assert torch.equal(run(block, rows[30:50]), together[30:50])


def test_a_row_is_the_same_bits_where_products_need_tiles() -> None:
    """Plain products keep rows apart only in tiles; groups of rows are padded to them."""
    config = tiny_config("DeepseekV3ForCausalLM")
    linears = LinearFactory((PlainLinear,))
    block = make_block(config, linears=linears)
    tile = linears.row_tile
    if not tile.batch_invariant:
        pytest.skip("the plain matrix product of this machine is not batch invariant")
    rows = random_rows(64, config)
    together = run(block, rows)
    for count in (1, 3, 20):
        padded = torch.zeros(tile.round_up(count), config.hidden_size)
        padded[:count] = rows[7 : 7 + count]
        assert torch.equal(run(block, padded, count)[:count], together[7 : 7 + count])


def test_padding_is_not_routed() -> None:
    config = tiny_config("DeepseekV2ForCausalLM")
    block, rows = make_block(config), random_rows(8, config)
    expected = run(block, rows[:5])
    counter = block.new_counter()
    rows[5:] = float("nan")
    assert torch.equal(run(block, rows, 5, counter)[:5], expected)
    assert counter.counts[0].sum() == 5 * moe_of(config).experts_per_token


def naive(config: ModelConfig, block: ExpertMLP, rows: Tensor) -> list[list[int]]:
    """The experts of each row, each row routed alone."""
    router: Router = block._router
    return [router(row[None])[0][0].tolist() for row in rows]


@pytest.mark.parametrize("architecture", ALL)
def test_traffic_is_what_counting_row_by_row_finds(architecture: str) -> None:
    config = tiny_config(architecture)
    moe, block = moe_of(config), make_block(config)
    counter = block.new_counter()
    traffic = ExpertTraffic([counter])
    rows = random_rows(5, config)
    run(block, rows, counter=counter)
    chosen = naive(config, block, rows)
    assert all(len(set(experts)) == moe.experts_per_token for experts in chosen)
    flat = [expert for experts in chosen for expert in experts]
    bytes_of_one = 4 * 3 * config.hidden_size * moe.expert_size
    expected = LayerTraffic(
        layer=LAYER,
        rows=tuple(flat.count(expert) for expert in range(moe.num_experts)),
        distinct=len(set(flat)),
        loaded_bytes=len(set(flat)) * bytes_of_one,
    )
    assert traffic.take() == (expected,)
    assert traffic.take() == (
        LayerTraffic(LAYER, (0,) * moe.num_experts, distinct=0, loaded_bytes=0),
    )


def test_an_expert_that_two_passes_need_is_loaded_twice() -> None:
    config = tiny_config("MixtralForCausalLM")
    block, rows = make_block(config), random_rows(1, config)
    counter = block.new_counter()
    run(block, rows, counter=counter)
    run(block, rows, counter=counter)
    (layer,) = ExpertTraffic([counter]).take()
    assert (sum(layer.rows), layer.distinct) == (4, 2)
    assert layer.loaded_bytes == 4 * 4 * 3 * config.hidden_size * moe_of(config).expert_size


@pytest.mark.parametrize("expert_parallel", [False, True])
def test_every_rank_counts_what_all_of_them_do(expert_parallel: bool) -> None:
    config = tiny_config("MixtralForCausalLM")
    rows = random_rows(6, config)

    def job(ranks: RankGroup) -> LayerTraffic:
        block = make_block(config, ranks=ranks, expert_parallel=expert_parallel)
        counter = block.new_counter()
        run(block, rows, counter=counter)
        (layer,) = ExpertTraffic([counter]).take()
        return layer

    (whole,) = run_ranks(1, job)
    layers = run_ranks(4, job)
    assert layers == [whole] * 4


def test_more_ranks_than_experts() -> None:
    """A rank without experts adds nothing and takes part all the same."""
    config = with_experts(tiny_config("MixtralForCausalLM"), num_experts=3)
    rows = random_rows(9, config)
    expected = run(make_block(config), rows)

    def job(ranks: RankGroup) -> Tensor:
        return run(make_block(config, ranks=ranks, expert_parallel=True), rows)

    for found in run_ranks(4, job):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_runner_tells_the_traffic_of_its_own_steps() -> None:
    config = tiny_config("Qwen3MoeForCausalLM")
    runner = make_runner(make_model(config))
    other = runner.beside()
    sequence = FedSequence(random_tokens(12, config.vocab_size, seed=1), [1])
    for count in (11, 1):
        feed(runner, [(sequence, count)])
        layers = runner.take_traffic()
        assert [layer.layer for layer in layers] == [0, 2]
        assert [sum(layer.rows) for layer in layers] == [3 * count] * 2
        assert all(sum(layer.rows) == 0 for layer in other.take_traffic())
    assert make_runner(make_model(tiny_config())).take_traffic() == ()


@pytest.mark.parametrize("sizes", [[4, 0, 9, 1], [0, 0, 0, 3], [8, 8, 8, 8]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_grouped_products_are_the_products_one_by_one(sizes: list[int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    gate_up = torch.randn(4, 48, 32, generator=generator).to(dtype) / 5
    down = torch.randn(4, 32, 24, generator=generator).to(dtype) / 5
    rows = torch.randn(sum(sizes) + 3, 32, generator=generator).to(dtype)
    groups = torch.tensor(sizes)
    found = GroupedExperts(gate_up, down, LinearFactory())(rows, groups)[: sum(sizes)]
    expected = LoopedExperts(gate_up, down, LinearFactory())(rows, groups)[: sum(sizes)]
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_equal_scores_choose_the_first_experts() -> None:
    """Whatever the number of rows: rounding makes scores equal more often than one would think."""
    config = with_experts(tiny_config("DeepseekV3ForCausalLM"), num_groups=1, top_groups=1)
    router = Router(moe_of(config), PlainLinear(torch.zeros(8, config.hidden_size), None), None)
    for count in (1, 7, 300):
        experts, weights = router(random_rows(count, config))
        assert experts.tolist() == [[0, 1, 2]] * count
        torch.testing.assert_close(weights, torch.full((count, 3), 2.5 / 3))


def test_weights_are_packed_once_per_expert() -> None:
    """Experts without rows cost nothing in a step, and none is packed again."""
    if not PackedLinear.supports(torch.float32, torch.device("cpu")):
        pytest.skip("this build of torch has no oneDNN")
    config = tiny_config("MixtralForCausalLM")
    block = make_block(config)
    products = block._products
    assert isinstance(products, LoopedExperts)
    assert all(isinstance(linear, PackedLinear) for pair in products._experts for linear in pair)
