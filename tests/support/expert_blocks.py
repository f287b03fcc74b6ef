"""Expert blocks of tiny models without the model around them."""

from dataclasses import replace
from typing import Any

import torch
from tests.support.tiny_models import tiny_state_dict
from torch import Tensor

from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.blocks import LayerWeights
from twinflow.runtime.models.config import ModelConfig, MoEConfig
from twinflow.runtime.models.experts import ExpertMLP
from twinflow.runtime.models.linear import LinearFactory
from twinflow.runtime.models.weights import load_parameters

LAYER = 2
CPU = torch.device("cpu")


def moe_of(config: ModelConfig) -> MoEConfig:
    """The experts of a model that has some."""
    assert config.moe is not None
    return config.moe


def with_experts(config: ModelConfig, **changes: Any) -> ModelConfig:
    """`config` with other values of fields of `MoEConfig`."""
    return replace(config, moe=replace(moe_of(config), **changes))


def make_block(
    config: ModelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    ranks: RankGroup | None = None,
    expert_parallel: bool = False,
    linears: LinearFactory | None = None,
) -> ExpertMLP:
    """The experts of layer `LAYER`, with the weights of `tiny_state_dict`."""
    placement = Placement(
        dtype=dtype, device=CPU, ranks=ranks or OneRank(), expert_parallel=expert_parallel
    )
    needed = ExpertMLP.parameters(config, LAYER, placement)
    loaded, _others = load_parameters(needed, tiny_state_dict(config).items(), dtype, CPU)
    block = ExpertMLP(config, LayerWeights(LAYER, loaded, linears or LinearFactory(), placement))
    assert not loaded, "a parameter was loaded and not taken"
    return block


def run_block(
    config: ModelConfig,
    rows: Tensor,
    expert_parallel: bool,
    ranks: RankGroup,
) -> Tensor:
    """What the experts of layer `LAYER` make of rows."""
    block = make_block(config, ranks=ranks, expert_parallel=expert_parallel)
    with torch.inference_mode():
        return block(rows, len(rows))


def random_rows(count: int, config: ModelConfig, seed: int = 0) -> Tensor:
    """float32 [count, hidden], with the scale of normalised rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, config.hidden_size, generator=generator)
