"""The fast mixture of experts is the plain one, in its values and in its gradients."""

import torch
from benchmarks.train_nano.experts import Experts
from torch import Tensor
from torch.nn import functional as F

HIDDEN, SIZE, COUNT, TOP, SCALE = 16, 8, 6, 2, 1.5


def test_values_and_gradients_are_those_of_a_loop_over_experts() -> None:
    experts, x = _experts(), torch.randn(40, HIDDEN, requires_grad=True)
    out, _ = experts(x)
    torch.autograd.backward(out.square().sum())
    fast = [x.grad, *(parameter.grad for parameter in experts.parameters())]
    x.grad = None
    experts.zero_grad()
    expected = _plain(experts, x)
    torch.autograd.backward(expected.square().sum())
    plain = [x.grad, *(parameter.grad for parameter in experts.parameters())]
    torch.testing.assert_close(out, expected)
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_expert_without_tokens_gets_no_gradient() -> None:
    experts = _experts()
    with torch.no_grad():
        experts.gate.weight.zero_()
        experts.gate.weight[:TOP] = 1.0
    out, imbalance = experts(torch.rand(10, HIDDEN))
    torch.autograd.backward(out.sum())
    assert experts.up_proj.grad is not None
    assert experts.up_proj.grad[:TOP].abs().sum() > 0
    assert experts.up_proj.grad[TOP:].abs().sum() == 0
    assert imbalance > 1.5


def _experts() -> Experts:
    torch.manual_seed(0)
    experts = Experts(HIDDEN, SIZE, COUNT, TOP, SCALE)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(std=0.5)
    return experts


def _plain(experts: Experts, x: Tensor) -> Tensor:
    weights, chosen = experts.gate(x).softmax(-1).topk(TOP, dim=-1)
    rows = []
    for row, of_row, indices in zip(x, weights, chosen, strict=True):
        total = experts.shared_experts(row)
        for weight, index in zip(of_row, indices, strict=True):
            inner = F.silu(experts.gate_proj[index] @ row) * (experts.up_proj[index] @ row)
            total = total + SCALE * weight * (experts.down_proj[index] @ inner)
        rows.append(total)
    return torch.stack(rows)
