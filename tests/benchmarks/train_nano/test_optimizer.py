"""Muon makes updates orthogonal, and an optimizer goes on where it stopped."""

import pytest
import torch
from benchmarks.train_nano.optimizer import Optimizer, OptimizerConfig, orthogonal
from torch import nn


@pytest.mark.parametrize("size", [(16, 64), (64, 16), (3, 24, 24)])
def test_singular_values_become_about_one(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(size)))
    assert 0.5 < values.median() < 1.3
    assert values.max() < 1.3


def test_directions_are_kept() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(16, 64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert (
        torch.nn.functional.cosine_similarity(
            orthogonal(matrix).flatten(), (left @ right).flatten(), dim=0
        )
        > 0.95
    )


def test_a_restored_optimizer_takes_the_same_steps() -> None:
    straight, stopped = _model(), _model()
    optimizer = Optimizer(straight, OptimizerConfig())
    before = Optimizer(stopped, OptimizerConfig())
    for step in range(3):
        _step(straight, optimizer, step)
        _step(stopped, before, step)
    after = Optimizer(stopped, OptimizerConfig())
    after.restore({name: value.clone() for name, value in before.state().items()})
    for step in range(3, 6):
        _step(straight, optimizer, step)
        _step(stopped, after, step)
    for one, other in zip(straight.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(one, other)


def test_gradients_are_used_once() -> None:
    model = _model()
    optimizer = Optimizer(model, OptimizerConfig())
    _step(model, optimizer, 0)
    weights = [parameter.clone() for parameter in model.parameters()]
    optimizer.step(1.0)
    for one, other in zip(weights, model.parameters(), strict=True):
        assert torch.equal(one, other)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"up_proj": nn.Linear(8, 4, bias=False), "norm": nn.LayerNorm(4)})


def _step(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step(0.5)
