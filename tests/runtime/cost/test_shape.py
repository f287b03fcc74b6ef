"""Operations and bytes, compared with counts done by hand."""

import pytest
from tests.support.cost import LLAMA_8B

from twinflow.runtime.cost.shape import ModelShape
from twinflow.runtime.models.config import LatentConfig, ModelConfig, MoEConfig

LLAMA = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position=131_072,
)
# DeepSeek-V2-Lite: 27 layers, the first one dense; 15.7 billion parameters, 2.4 of them active.
LITE = ModelConfig(
    architecture="DeepseekV2ForCausalLM",
    vocab_size=102_400,
    hidden_size=2048,
    intermediate_size=10944,
    num_layers=27,
    num_heads=16,
    num_kv_heads=1,
    head_dim=64,
    max_position=163_840,
    latent=LatentConfig(query_rank=None, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128),
    moe=MoEConfig(
        layers=tuple(range(1, 27)),
        num_experts=64,
        experts_per_token=6,
        expert_size=1408,
        shared_size=2816,
    ),
)


def test_a_dense_model_with_grouped_heads() -> None:
    assert ModelShape.of(LLAMA, element_bytes=2) == LLAMA_8B


def test_latents_and_experts() -> None:
    shape = ModelShape.of(LITE, element_bytes=2)
    assert shape.kv_bytes == 2 * (512 + 64)
    assert shape.pair_flops == 2 * 16 * (512 + 512 + 64)
    experts = shape.num_layers * shape.num_experts * shape.expert_bytes / 2
    dense = shape.num_layers * shape.dense_bytes / 2
    # Embedding and head are as large as each other.
    assert dense + experts + shape.head_bytes == pytest.approx(15.7e9, rel=0.01)
    active = shape.num_layers * (shape.dense_flops + shape.expert_flops) / 2
    assert active + shape.head_bytes == pytest.approx(2.66e9, rel=0.02)


@pytest.mark.parametrize("config", [LLAMA, LITE])
def test_ranks_share_everything_but_latents(config: ModelConfig) -> None:
    whole = ModelShape.of(config, element_bytes=2)
    half = ModelShape.of(config, element_bytes=2, ranks=2)
    for name in ("dense_flops", "dense_bytes", "expert_flops", "pair_flops", "head_flops"):
        assert getattr(half, name) == getattr(whole, name) / 2
    assert half.kv_bytes == (whole.kv_bytes if config.latent else whole.kv_bytes / 2)


def test_expected_experts() -> None:
    shape = ModelShape.of(LITE, element_bytes=2)
    assert shape.experts_hit(0) == 0.0
    assert shape.experts_hit(1) == pytest.approx(6.0)
    assert shape.experts_hit(16) == pytest.approx(64 * (1 - (58 / 64) ** 16))
    assert shape.experts_hit(10_000) == pytest.approx(64.0)
    assert LLAMA_8B.experts_hit(16) == 0.0
