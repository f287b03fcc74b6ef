"""Muon for matrices, AdamW for everything else, with a state that is a flat dict of tensors.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") replaces the
momentum of a matrix by the nearest orthogonal one, found by a Newton-Schulz iteration. On small
budgets it needs clearly fewer tokens than AdamW does.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Of x -> ax + bx^3 + cx^5, which drives singular values towards one (same source).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
TINY = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Peak learning rates and what goes with them.

    Attributes:
        matrix_rate: of Muon, before the factor for tall matrices.
        other_rate: of AdamW: embedding, norms, routers.
        matrix_momentum: of Muon (Nesterov).
        betas: of AdamW.
        matrix_decay: weight decay of matrices, times the learning rate.
    """

    matrix_rate: float = 0.02
    other_rate: float = 1e-2
    matrix_momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.99)
    matrix_decay: float = 0.05


class Optimizer:
    """Updates the parameters of one model from their gradients.

    Args:
        model: whose parameters.
        config: rates.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self._config = config
        self._parameters = dict(model.named_parameters())
        self._steps = 0
        self._state = {
            f"{name}.{kind}": torch.zeros_like(parameter)
            for name, parameter in self._parameters.items()
            for kind in (("momentum",) if _is_matrix(name) else ("mean", "square"))
        }

    @torch.no_grad()
    def step(self, fraction: float) -> None:
        """Use and drop the gradients, at `fraction` of the peak learning rates."""
        self._steps += 1
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            if _is_matrix(name):
                self._muon(name, parameter, parameter.grad, fraction)
            else:
                self._adam(name, parameter, parameter.grad, fraction)
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs to go on."""
        return {**self._state, "steps": torch.tensor(self._steps)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        self._steps = int(state["steps"])
        for name, tensor in self._state.items():
            tensor.copy_(state[name])

    def _muon(self, name: str, parameter: Tensor, gradient: Tensor, fraction: float) -> None:
        momentum = self._state[f"{name}.momentum"]
        beta = self._config.matrix_momentum
        momentum.lerp_(gradient, 1 - beta)
        rate = fraction * self._config.matrix_rate
        rows, columns = parameter.shape[-2:]
        parameter.mul_(1 - rate * self._config.matrix_decay)
        update = orthogonal(gradient.lerp(momentum, beta))
        parameter.sub_(update, alpha=rate * max(1.0, rows / columns) ** 0.5)

    def _adam(self, name: str, parameter: Tensor, gradient: Tensor, fraction: float) -> None:
        mean, square = self._state[f"{name}.mean"], self._state[f"{name}.square"]
        first, second = self._config.betas
        mean.lerp_(gradient, 1 - first)
        square.lerp_(gradient.square(), 1 - second)
        corrected = mean / (1 - first**self._steps)
        spread = (square / (1 - second**self._steps)).sqrt_().add_(TINY)
        parameter.addcdiv_(corrected, spread, value=-fraction * self._config.other_rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """Roughly the nearest orthogonal matrix to each of [..., rows, columns]."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + TINY)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    nearest: Tensor = x.mT if tall else x
    return nearest


def _is_matrix(name: str) -> bool:
    """Projections and experts; not the embedding, gains and routers."""
    return "_proj" in name
