"""Layers in groups: nothing changes for groups of one, and all layouts compute the same thing."""

from dataclasses import dataclass

import pytest
import torch
from tests.support.rank_groups import run_grouped
from tests.support.runners import CPU, fail_on_warning, make_model, make_runner, random_tokens
from tests.support.tiny_models import tiny_config, tiny_state_dict
from torch import Tensor

from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.protos.errors import ConfigError
from twinflow.runtime.model_runner import ModelRunner, SequenceRows
from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.owners import LayerOwners
from twinflow.runtime.models.registry import create_model
from twinflow.runtime.speculative.layer_parallel.plan import LayerPlan

LAYERS = 6
CONFIGS: dict[str, ModelConfig] = {
    "llama": tiny_config(num_layers=LAYERS, num_heads=8, num_kv_heads=4),
    "qwen3": tiny_config("Qwen3ForCausalLM", num_layers=LAYERS, num_heads=8, num_kv_heads=2),
    "latent": tiny_config("DeepseekV2ForCausalLM", num_layers=LAYERS, num_heads=8),
}
PROMPT = random_tokens(37, 131, seed=1)
NEXT = random_tokens(3, 131, seed=2)
LAYOUTS = ("fused_tp", "owner tp", "owner replicated")


@dataclass(frozen=True)
class Generation:
    """A prompt in two chunks, then tokens one by one; logits of every step.

    Attributes:
        config: of the model.
        layout: where it is computed.
        plan: for the tokens behind the prompt; None for `forward` without groups.
    """

    config: ModelConfig
    layout: str
    plan: LayerPlan | None

    def __call__(self, ranks: RankGroup) -> Tensor:
        runner = self.runner(ranks)
        blocks = range(1, 5)
        runner.forward([SequenceRows(PROMPT[:20], 0, blocks, samples=False)])
        found = [runner.forward([SequenceRows(PROMPT[20:], 20, blocks, samples=True)])]
        groups = None if self.plan is None else self.plan.groups
        for position, token in enumerate(NEXT, start=len(PROMPT)):
            rows = [SequenceRows([token], position, blocks, samples=True)]
            found.append(runner.forward(rows, groups=groups))
        return torch.cat(found)

    def runner(self, ranks: RankGroup) -> ModelRunner:
        owners = None
        if self.layout.startswith("owner"):
            replicated = self.layout.endswith("replicated")
            owners = LayerOwners.of(ranks, LAYERS, replicated=replicated)
        placement = Placement(dtype=torch.float32, device=CPU, ranks=ranks, owners=owners)
        weights = tiny_state_dict(self.config).items()
        return make_runner(create_model(self.config, placement, weights, fail_on_warning), 6)


@pytest.mark.parametrize("name", CONFIGS)
def test_groups_of_one_are_the_model_itself_bit_by_bit(name: str) -> None:
    plain = Generation(CONFIGS[name], "single", None)(OneRank())
    serial = Generation(CONFIGS[name], "single", LayerPlan.serial(LAYERS))(OneRank())
    assert torch.equal(plain, serial)
    grouped = Generation(CONFIGS[name], "single", LayerPlan.uniform(LAYERS, 2))(OneRank())
    assert torch.equal(plain[0], grouped[0])
    assert not torch.allclose(plain, grouped, atol=1e-3)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["llama", "latent"])
def test_every_layout_computes_the_same(name: str, layout: str, size: int) -> None:
    plan = LayerPlan.uniform(LAYERS, 3)
    (alone,) = run_grouped(1, Generation(CONFIGS[name], "single", plan))
    for found in run_grouped(size, Generation(CONFIGS[name], layout, plan)):
        torch.testing.assert_close(found, alone, atol=2e-4, rtol=2e-4)


def test_attention_of_a_group_reads_what_came_before_the_group() -> None:
    config = CONFIGS["llama"]
    plan = LayerPlan.of_sizes((1, 2, 3))
    found = Generation(config, "single", plan)(OneRank())
    expected = written_out(config, plan, [*PROMPT, *NEXT])
    torch.testing.assert_close(found, expected[len(PROMPT) - 1 :], atol=2e-4, rtol=2e-4)


def written_out(config: ModelConfig, plan: LayerPlan, tokens: list[int]) -> Tensor:
    """Logits of all tokens: those of the prompt layer by layer, the others as planned.

    EasySpec's algorithm 2 in plain torch, over whole sequences.
    """
    weights = tiny_state_dict(config)
    hidden = weights["model.embed_tokens.weight"][tokens]
    rotation = rotations(config, len(tokens))
    for group in plan.groups:
        before = hidden
        for layer in group:
            # A token behind the prompt has keys and values of what came before the group.
            mixed = torch.cat((hidden[: len(PROMPT)], before[len(PROMPT) :]))
            hidden = hidden + attention(config, weights, layer, mixed, rotation)
            hidden = hidden + mlp(config, weights, layer, hidden)
    return norm(config, hidden, weights["model.norm.weight"]) @ weights["lm_head.weight"].T


def attention(
    config: ModelConfig, weights: dict[str, Tensor], layer: int, rows: Tensor, rotation: Tensor
) -> Tensor:
    name, shared = f"model.layers.{layer}.", config.num_heads // config.num_kv_heads
    rows = norm(config, rows, weights[name + "input_layernorm.weight"])
    queries, keys, values = (
        (rows @ weights[f"{name}self_attn.{kind}_proj.weight"].T)
        .view(len(rows), -1, config.head_dim)
        .transpose(0, 1)
        for kind in "qkv"
    )
    queries, keys = (
        torch.view_as_real(torch.complex(*part.chunk(2, dim=-1)) * rotation)
        .transpose(-1, -2)
        .flatten(-2)
        for part in (queries, keys)
    )
    attended = torch.nn.functional.scaled_dot_product_attention(
        queries,
        keys.repeat_interleave(shared, 0),
        values.repeat_interleave(shared, 0),
        is_causal=True,
    )
    out: Tensor = attended.transpose(0, 1).flatten(1) @ weights[name + "self_attn.o_proj.weight"].T
    return out


def rotations(config: ModelConfig, count: int) -> Tensor:
    """Complex [count, head_dim / 2]: by how much each pair is turned at each position."""
    pairs = torch.arange(0, config.head_dim, 2) / config.head_dim
    angles = torch.arange(count)[:, None] * config.rope_theta**-pairs
    return torch.polar(torch.ones_like(angles), angles)


def mlp(config: ModelConfig, weights: dict[str, Tensor], layer: int, rows: Tensor) -> Tensor:
    name = f"model.layers.{layer}."
    rows = norm(config, rows, weights[name + "post_attention_layernorm.weight"])
    gate, up = (rows @ weights[f"{name}mlp.{kind}_proj.weight"].T for kind in ("gate", "up"))
    down: Tensor = (torch.nn.functional.silu(gate) * up) @ weights[f"{name}mlp.down_proj.weight"].T
    return down


def norm(config: ModelConfig, rows: Tensor, gain: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(rows, gain.shape, gain, config.rms_norm_eps)


def test_groups_must_be_all_layers_in_order_crossed_at_once() -> None:
    runner = make_runner(make_model(CONFIGS["llama"]), 6)
    rows = SequenceRows(PROMPT, 0, range(1, 5), samples=True)
    for groups in ([range(5)], [range(3), range(4, 6)], [range(3, 6), range(3)]):
        with pytest.raises(ValueError, match="are not the 6 layers in order"):
            runner.forward([rows], groups=groups)
    part = SequenceRows(PROMPT, 0, range(1, 5), samples=False, layer_end=3)
    with pytest.raises(ValueError, match="crossed all at once"):
        runner.forward([part], groups=[range(6)])
    with pytest.raises(ValueError, match="crossed all at once"):
        runner.forward([rows], on_layers=lambda first, end: None, groups=[range(6)])


def test_owners_share_layers_weights_and_kv_evenly() -> None:
    def work(ranks: RankGroup) -> tuple[int, int]:
        runner = Generation(CONFIGS["llama"], "owner replicated", None).runner(ranks)
        return runner.kv_cache.layout.num_layers, ranks.rank

    assert run_grouped(4, work) == [(2, 0), (2, 1), (1, 2), (1, 3)]
    with pytest.raises(ConfigError, match="2 layers cannot be owned by 4 ranks"):
        run_grouped(4, lambda ranks: LayerOwners.of(ranks, 2, replicated=True))
