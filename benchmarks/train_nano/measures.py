"""What a model card says about a trained model, measured with the exported (rounded) weights."""

import torch
from torch import Tensor, nn

from benchmarks.train_nano.experts import Experts
from benchmarks.train_nano.latent_model import LatentShape
from benchmarks.train_nano.training import HeldOut, evaluate, windows


def parameters(model: nn.Module) -> int:
    """Elements of all weights; the head is the embedding and counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def active_parameters(model: nn.Module, shape: LatentShape) -> int:
    """Elements that take part in predicting one token: of the routed experts only the chosen."""
    routed = sum(
        weight.numel()
        for layer in model.modules()
        if isinstance(layer, Experts)
        for weight in (layer.gate_proj, layer.up_proj, layer.down_proj)
    )
    return parameters(model) - routed + routed * shape.top // shape.experts


def expert_load(model: nn.Module, held_out: HeldOut) -> Tensor:
    """The share of all choices that fell on each expert, [layers with experts, experts]."""
    layers = [module for module in model.modules() if isinstance(module, Experts)]
    chosen: dict[Experts, list[Tensor]] = {layer: [] for layer in layers}
    hooks = [
        layer.register_forward_hook(
            lambda layer, inputs, _: chosen[layer].append(layer.choose(inputs[0])[2].flatten())
        )
        for layer in layers
    ]
    evaluate(model, held_out)
    for hook in hooks:
        hook.remove()
    counts = [
        torch.cat(found).bincount(minlength=layer.gate.out_features)
        for layer, found in chosen.items()
    ]
    return torch.stack(counts) / torch.stack(counts).sum(-1, keepdim=True)


@torch.no_grad()
def acceptance(target: nn.Module, drafter: nn.Module, held_out: HeldOut) -> tuple[float, float]:
    """How often a drafted token is accepted on held-out text: (sampled, greedy).

    Sampled: the mean over positions of sum_x min(p(x), q(x)), the probability that speculative
    sampling at temperature 1 keeps a draft (arXiv 2211.17192, corollary 3.6). Greedy: how often
    both models prefer the same token.
    """
    sampled, greedy, tokens = 0.0, 0, 0
    for batch in windows(held_out.ids):
        wanted, drafted = target(batch[:, :-1])[0], drafter(batch[:, :-1])[0]
        sampled += torch.minimum(wanted.softmax(-1), drafted.softmax(-1)).sum().item()
        greedy += int((wanted.argmax(-1) == drafted.argmax(-1)).sum())
        tokens += batch[:, 1:].numel()
    return sampled / tokens, greedy / tokens
