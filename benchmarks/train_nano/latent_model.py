"""The nano model: DeepSeek-V2's shape (arXiv 2405.04434) as plain modules, for training.

Parameters have the names of `DeepseekV2ForCausalLM`, except that the experts of a layer are one
tensor per projection. No cache: generation is transformers' or twinflow's affair.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.train_nano.experts import Experts
from benchmarks.train_nano.layers import (
    INIT_STD,
    GatedMLP,
    RMSNorm,
    causal_attention,
    linear,
    output_linear,
    rotary_angles,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentShape:
    """Sizes of the model; the first layer is dense, all others have experts.

    Attributes:
        vocabulary: tokens.
        hidden: width of a token.
        layers: decoder layers.
        heads: attention heads.
        latent: width of the latent that keys and values are made of.
        nope: elements of a head's key without position.
        rope: elements with rotary position, shared by all heads.
        value: elements of a head's value.
        dense_size: intermediate size of the first layer's MLP.
        expert_size: of a routed expert, and of the shared one.
        experts: routed experts.
        top: routed experts per token.
        routed_scale: on the weights of the chosen experts.
        positions: longest context.
        rope_theta: base of the rotary frequencies.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    latent: int
    nope: int
    rope: int
    value: int
    dense_size: int
    expert_size: int
    experts: int
    top: int
    routed_scale: float
    positions: int
    rope_theta: float


class LatentModel(nn.Module):
    """Latent attention and a mixture of experts; the head is the embedding."""

    def __init__(self, shape: LatentShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        nn.init.normal_(self.embed_tokens.weight, std=INIT_STD)
        self.layers = nn.ModuleList(_Layer(shape, index) for index in range(shape.layers))
        self.norm = RMSNorm(shape.hidden)
        angles = rotary_angles(shape.positions, shape.rope, shape.rope_theta)
        self.register_buffer("_turns", torch.stack((angles.cos(), angles.sin())), persistent=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [batch, length, vocabulary] and the mean imbalance of the routers."""
        cosine, sine = self.get_buffer("_turns")[:, : ids.shape[1]]
        x = self.embed_tokens(ids)
        imbalances = []
        for layer in self.layers:
            x, imbalance = layer(x, cosine, sine)
            imbalances += [] if imbalance is None else [imbalance]
        return F.linear(self.norm(x), self.embed_tokens.weight), torch.stack(imbalances).mean()


class _Layer(nn.Module):
    def __init__(self, shape: LatentShape, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden)
        self.self_attn = _LatentAttention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden)
        self.mlp: nn.Module = (
            GatedMLP(shape.hidden, shape.dense_size)
            if index == 0
            else Experts(
                shape.hidden, shape.expert_size, shape.experts, shape.top, shape.routed_scale
            )
        )

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor | None]:
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine)
        normed = self.post_attention_layernorm(x)
        if isinstance(self.mlp, GatedMLP):
            return x + self.mlp(normed), None
        out, imbalance = self.mlp(normed.flatten(0, 1))
        return x + out.view_as(x), imbalance


class _LatentAttention(nn.Module):
    """Section 2.1 of the paper, with keys and values materialised."""

    def __init__(self, shape: LatentShape) -> None:
        super().__init__()
        self._shape = shape
        self.q_proj = linear(shape.hidden, shape.heads * (shape.nope + shape.rope))
        self.kv_a_proj_with_mqa = linear(shape.hidden, shape.latent + shape.rope)
        self.kv_a_layernorm = RMSNorm(shape.latent)
        self.kv_b_proj = linear(shape.latent, shape.heads * (shape.nope + shape.value))
        self.o_proj = output_linear(shape.heads * shape.value, shape.hidden)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        shape = self._shape
        split = (*x.shape[:2], shape.heads, -1)
        q_nope, q_rope = self.q_proj(x).view(split).split((shape.nope, shape.rope), -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((shape.latent, shape.rope), -1)
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent)).view(split)
        k_nope, value = expanded.split((shape.nope, shape.value), -1)
        k_rope = _turn(k_rope.unsqueeze(2), cosine, sine).expand(-1, -1, shape.heads, -1)
        query = torch.cat((q_nope, _turn(q_rope, cosine, sine)), -1).transpose(1, 2)
        key = torch.cat((k_nope, k_rope), -1).transpose(1, 2)
        out = causal_attention(query, key, value.transpose(1, 2))
        projected: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return projected


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotates neighbouring pairs of [batch, length, heads, width] by [length, width / 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    turned = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1)
    return turned.flatten(-2)
