"""Whole models in native kernels: as in torch and transformers, whatever their ranks and parts."""

from dataclasses import dataclass

import pytest
import torch
from tests.support.kernels import kernels_named
from tests.support.latent_models import latent_config
from tests.support.runners import (
    FedSequence,
    fail_on_warning,
    feed,
    make_model,
    make_runner,
    random_tokens,
)
from tests.support.tiny_models import tiny_config, tiny_state_dict
from torch import Tensor

from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.parallel.ranks.threads import run_ranks
from twinflow.runtime.models.base import Model, Placement
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.registry import create_model

STEPS = [1, 40, 23, 1, 1]
CONFIGS = {
    "llama": tiny_config(),
    "qwen3": tiny_config("Qwen3ForCausalLM", num_heads=8, num_kv_heads=4, head_dim=18),
    "experts": tiny_config("Qwen3MoeForCausalLM"),
    "latents": latent_config(),
}


def logits(model: Model) -> Tensor:
    """After each step of a random sequence, [steps, vocab]."""
    runner = make_runner(model)
    assert runner.batch_invariant
    tokens = random_tokens(sum(STEPS), model.config.vocab_size, seed=5)
    sequence = FedSequence(tokens, list(range(1, 6)))
    for count in STEPS:
        feed(runner, [(sequence, count)])
    return torch.stack(list(sequence.logits.values()))


@dataclass
class Job:
    """What every rank does."""

    config: ModelConfig
    kernels: str = "native"

    def __call__(self, ranks: RankGroup) -> Tensor:
        """See `logits`."""
        return logits(make_model(self.config, ranks=ranks, kernels=kernels_named(self.kernels)))


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0.0)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_are_those_of_torch(config: ModelConfig) -> None:
    assert_close(Job(config)(OneRank()), Job(config, "torch")(OneRank()))


@pytest.mark.parametrize("name", ["llama", "experts"])
def test_two_ranks_compute_what_one_computes(name: str) -> None:
    job = Job(CONFIGS[name])
    first, second = run_ranks(2, job)
    assert_close(first, job(OneRank()))
    assert torch.equal(first, second)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_bfloat16_matrices_are_float32_matrices_in_half_the_memory(config: ModelConfig) -> None:
    """The same bits, but for latent attention, which changes some of its matrices in float32."""
    weights = {
        name: tensor.bfloat16().float() if tensor.dim() > 1 else tensor
        for name, tensor in tiny_state_dict(config).items()
    }
    found = [
        logits(
            create_model(
                config,
                Placement(
                    dtype=torch.float32,
                    device=torch.device("cpu"),
                    kernels=kernels_named("native"),
                    matrix_dtype=dtype,
                ),
                weights.items(),
                fail_on_warning,
            )
        )
        for dtype in (None, torch.bfloat16)
    ]
    assert torch.equal(*found)


def test_bfloat16_models_agree_within_rounding() -> None:
    config = CONFIGS["qwen3"]
    exact = Job(config, "torch")(OneRank())
    errors = [
        (logits(make_model(config, torch.bfloat16, kernels=kernels_named(name))) - exact).norm()
        for name in ("native", "torch")
    ]
    assert errors[0] < 1.5 * errors[1]
