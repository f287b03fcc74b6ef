"""Attention with key and value heads that groups of query heads share (GQA, arXiv 2305.13245).

    output(attention(rotate(norm(q k v(rows)))))

q, k and v are one matrix product. The norm on the heads of q and k is optional. Rotary embedding
and attention are float32 for any dtype of the weights.
"""

import torch
from torch import Tensor

from twinflow.runtime.attention.base import HeadKernel
from twinflow.runtime.kernels.base import HeadRotation
from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.blocks import AttentionBlock, LayerNames, LayerWeights, Step
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.linear import Linear
from twinflow.runtime.models.sharding import HeadCut
from twinflow.runtime.models.weights import Parameter


class HeadAttention(AttentionBlock):
    """Some query heads with the KV heads that they share."""

    def __init__(self, config: ModelConfig, weights: LayerWeights) -> None:
        self._layer = weights.kv_layer
        ranks = weights.placement.ranks
        cut = HeadCut.of(config.num_heads, config.num_kv_heads, ranks)
        self.num_heads = cut.queries.size
        self._kv_heads = cut.keys.size
        self._kernels = weights.placement.kernels
        self._head_dim = config.head_dim
        self._eps = config.rms_norm_eps
        self._query_key_value = weights.linear("query_key_value")
        self._head_norm = _head_norm(weights, cut) if config.qk_norm else None
        self._output = weights.linear("output")

    @staticmethod
    def parameters(config: ModelConfig, layer: int, placement: Placement) -> list[Parameter]:
        """See the base class."""
        cut = HeadCut.of(config.num_heads, config.num_kv_heads, placement.ranks)
        queries, keys = cut.queries.scaled(config.head_dim), cut.keys.scaled(config.head_dim)
        names, hidden = LayerNames(layer), config.hidden_size
        rows = {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
        found = names.outputs("query_key_value", rows, hidden, config.attention_bias)
        bias = config.attention_output_bias
        found += names.inputs("output", "self_attn.o_proj", hidden, queries, bias)
        if config.qk_norm:
            found.append(names.vector("query_norm", "self_attn.q_norm.weight", config.head_dim))
            found.append(names.vector("key_norm", "self_attn.k_norm.weight", config.head_dim))
        return found

    @property
    def weights(self) -> tuple[Linear, Tensor | None, Linear]:
        """To the heads, the norm on them, and from the query heads: what a layer stack needs."""
        return self._query_key_value, self._head_norm, self._output

    def part(self, rows: Tensor, step: Step) -> Tensor:
        """See the base class."""
        count = rows.shape[0]
        heads = self._query_key_value(rows).view(count, -1, self._head_dim)
        rotation = HeadRotation(
            step.cos, step.sin, self._kv_heads, self._head_norm, self._eps, self._head_dim**-0.5
        )
        queries = self._kernels.rotate_heads(heads, rotation)
        attention = HeadKernel.of(step.attention)
        attention.write(self._layer, heads[:, self.num_heads :])
        attended = attention.attend(self._layer, queries).view(count, -1)
        return self._output(attended.to(rows.dtype))


def _head_norm(weights: LayerWeights, cut: HeadCut) -> Tensor:
    """[query heads + KV heads, head_dim]: all heads of a kind have the same norm."""
    query_norm = weights.take("query_norm").expand(cut.queries.size, -1)
    key_norm = weights.take("key_norm").expand(cut.keys.size, -1)
    return torch.cat((query_norm, key_norm))
