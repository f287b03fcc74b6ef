"""What cards say is counted right."""

import pytest
import torch
from benchmarks.train_nano.experts import Experts
from benchmarks.train_nano.measures import acceptance, active_parameters, expert_load, parameters
from benchmarks.train_nano.training import HeldOut
from tests.support.nano_models import TINY_DENSE, TINY_LATENT, tiny
from torch import Tensor, nn

HELD_OUT = HeldOut(torch.arange(1025) % 300, torch.ones(300))


def test_active_parameters_leave_out_the_experts_that_are_not_chosen() -> None:
    model = tiny(TINY_LATENT)
    # One layer with experts, of which two of four are chosen, three projections each.
    spared = 2 * 3 * TINY_LATENT.expert_size * TINY_LATENT.hidden
    assert active_parameters(model, TINY_LATENT) == parameters(model) - spared


def test_load_is_the_share_of_choices() -> None:
    model = tiny(TINY_LATENT)
    router = next(module for module in model.modules() if isinstance(module, Experts)).gate
    with torch.no_grad():
        # Of opposite sign: each token's best two are one of the first pair and one of the second.
        router.weight[:] = torch.cat((router.weight[:1], -router.weight[:1])).repeat(2, 1)
    load = expert_load(model, HELD_OUT)
    assert load.shape == (1, TINY_LATENT.experts)
    assert load.sum().item() == pytest.approx(1.0)
    torch.testing.assert_close(load[0, 0], load[0, 2])
    torch.testing.assert_close(load[0, 1], load[0, 3])


def test_a_model_accepts_all_of_its_own_drafts() -> None:
    model = tiny(TINY_DENSE)
    assert acceptance(model, model, HELD_OUT) == pytest.approx((1.0, 1.0), abs=1e-5)


def test_acceptance_is_the_overlap_of_the_distributions() -> None:
    target, drafter = _Constant([0.5, 0.5, 0.0]), _Constant([0.7, 0.1, 0.2])
    sampled, greedy = acceptance(target, drafter, HELD_OUT)
    assert sampled == pytest.approx(0.6, abs=1e-5)
    assert greedy == 1.0


class _Constant(nn.Module):
    """Predicts the same whatever came before."""

    def __init__(self, shares: list[float]) -> None:
        super().__init__()
        self._logits = torch.tensor(shares).clamp_min(1e-9).log()

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self._logits.expand(*ids.shape, -1), torch.zeros(())
