"""The drafter: Llama's shape as plain modules, for training.

Parameters have the names of `LlamaForCausalLM`. No cache, as in `latent_model`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
class DenseShape:
    """Sizes of the drafter.

    Attributes:
        vocabulary: tokens; the same as the model that it drafts for.
        hidden: width of a token.
        layers: decoder layers.
        heads: query heads.
        kv_heads: key and value heads.
        head: elements of a head.
        dense_size: intermediate size of the MLP.
        positions: longest context.
        rope_theta: base of the rotary frequencies.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    dense_size: int
    positions: int
    rope_theta: float


class DenseModel(nn.Module):
    """Grouped-query attention and gated MLPs; the head is the embedding."""

    def __init__(self, shape: DenseShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        nn.init.normal_(self.embed_tokens.weight, std=INIT_STD)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden)
        angles = rotary_angles(shape.positions, shape.head, shape.rope_theta).repeat(1, 2)
        self.register_buffer("_turns", torch.stack((angles.cos(), angles.sin())), persistent=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [batch, length, vocabulary], and zero: nothing else is to be minimised."""
        cosine, sine = self.get_buffer("_turns")[:, : ids.shape[1]]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cosine, sine)
        return F.linear(self.norm(x), self.embed_tokens.weight), x.new_zeros(())


class _Layer(nn.Module):
    def __init__(self, shape: DenseShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden)
        self.mlp = GatedMLP(shape.hidden, shape.dense_size)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class _Attention(nn.Module):
    def __init__(self, shape: DenseShape) -> None:
        super().__init__()
        self._head = shape.head
        self._group = shape.heads // shape.kv_heads
        self.q_proj = linear(shape.hidden, shape.heads * shape.head)
        self.k_proj = linear(shape.hidden, shape.kv_heads * shape.head)
        self.v_proj = linear(shape.hidden, shape.kv_heads * shape.head)
        self.o_proj = output_linear(shape.heads * shape.head, shape.hidden)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        split = (*x.shape[:2], -1, self._head)
        query = _turn(self.q_proj(x).view(split).transpose(1, 2), cosine, sine)
        key = _turn(self.k_proj(x).view(split).transpose(1, 2), cosine, sine)
        value = self.v_proj(x).view(split).transpose(1, 2)
        key = key.repeat_interleave(self._group, dim=1)
        value = value.repeat_interleave(self._group, dim=1)
        out = causal_attention(query, key, value)
        projected: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return projected


def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotates the halves of [batch, heads, length, width] against each other."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat((-second, first), -1) * sine
