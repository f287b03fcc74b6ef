"""Multi-head latent attention (MLA) of DeepSeek and Kimi-K2 (arXiv 2405.04434, section 2.1).

    q        = x Wq                        or, through a compressed query, norm(x Wqa) Wqb
    [c | k]  = x Wkva                      c: latent, k: rotary key of all heads
    cached     norm(c) and rotate(k)
    [W_UK | W_UV] of each head = rows of kv_b: keys without position and values from the latent

The attention itself has two forms (see `attention.latent.base`); which one a row takes is the
kernel's to say. Heads are shared by the ranks, and what they cache by the placement's
`LatentPlan`; projections to query rank, latent and rotary key are computed by every rank in full.
"""

import torch
from torch import Tensor

from twinflow.runtime.attention.latent.base import LatentKernel
from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.blocks import AttentionBlock, LayerNames, LayerWeights, Step
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.functions import rms_norm
from twinflow.runtime.models.latent_weights import LatentWeights, latent_config
from twinflow.runtime.models.rope import latent_softmax_scale, rotate
from twinflow.runtime.models.sharding import Cut
from twinflow.runtime.models.weights import Parameter


class LatentAttention(AttentionBlock):
    """Some heads over latents."""

    def __init__(self, config: ModelConfig, weights: LayerWeights) -> None:
        self._latent = latent = latent_config(config)
        self._layer = weights.kv_layer
        plan = weights.placement.latent_plan
        self._sharing = plan.sharing
        heads = self._sharing.output_heads(config.num_heads)
        prompt = self._sharing.prompt_heads(config.num_heads)
        self.num_heads = len(heads)
        self._prompt_heads = slice(prompt.start - heads.start, prompt.stop - heads.start)
        self._key_dim = latent.nope_dim + latent.rope_dim
        self._scale = self._key_dim**-0.5 * latent_softmax_scale(config.rope_scaling)
        self._columns = self._sharing.columns(latent.kv_rank)
        self._weights = LatentWeights.take(config, weights, plan)
        self._output = weights.linear("output")

    @staticmethod
    def parameters(config: ModelConfig, layer: int, placement: Placement) -> list[Parameter]:
        """See the base class."""
        latent, names, hidden = latent_config(config), LayerNames(layer), config.hidden_size
        dtype = placement.dtype  # of what is changed before it is used
        own = placement.latent_plan.sharing.output_heads(config.num_heads)
        heads = Cut(config.num_heads, own.start, own.stop)
        queries = heads.scaled(latent.nope_dim + latent.rope_dim)
        rows = {"self_attn.q_proj": queries}
        found: list[Parameter] = []
        if latent.query_rank is not None:
            rows = {"self_attn.q_a_proj": Cut.whole(latent.query_rank)}
            name = "self_attn.q_a_layernorm.weight"
            found.append(names.vector("query_norm", name, latent.query_rank))
            expanded = {"self_attn.q_b_proj": queries}
            found += names.outputs("expand_query", expanded, latent.query_rank, dtype=dtype)
        rows["self_attn.kv_a_proj_with_mqa"] = Cut.whole(latent.kv_rank + latent.rope_dim)
        found += names.outputs("compress", rows, hidden, dtype=dtype)
        name = "self_attn.kv_a_layernorm.weight"
        found.append(names.vector("latent_norm", name, latent.kv_rank))
        expanded = {"self_attn.kv_b_proj": heads.scaled(latent.nope_dim + latent.value_dim)}
        found += names.outputs("expand", expanded, latent.kv_rank, dtype=dtype)
        values = heads.scaled(latent.value_dim)
        return found + names.inputs("output", "self_attn.o_proj", hidden, values)

    def part(self, rows: Tensor, step: Step) -> Tensor:
        """See the base class."""
        kernel, latent = LatentKernel.of(step.attention), self._latent
        compressed = self._weights.compress(rows)
        first = compressed.shape[1] - latent.kv_rank - latent.rope_dim
        widths = [first, latent.kv_rank, latent.rope_dim]
        query, c, rope = torch.split(compressed, widths, dim=1)
        rope_key = rotate(rope.unsqueeze(1), step.cos, step.sin).squeeze(1).to(rows.dtype)
        kernel.write(self._layer, self._cached(c), rope_key)
        queries = self._queries(query, step)
        attended = rows.new_zeros(len(rows), self.num_heads, latent.value_dim)
        if not kernel.prompt.is_empty:
            self._attend_prompt(kernel, queries, attended)
        if not kernel.generated.is_empty:
            self._attend_generated(kernel, queries, attended)
        return self._output(attended.flatten(1))

    def _cached(self, c: Tensor) -> Tensor:
        """Latents [rows, kv_rank] as they are cached: those columns that this rank holds."""
        weights = self._weights
        c = rms_norm(c, weights.latent_norm, self._latent.norm_eps)
        if weights.to_basis is not None:
            c = weights.to_basis(c)
        if len(self._columns) == 1:
            return c[:, self._columns[0].start : self._columns[0].stop]
        return torch.cat([c[:, held.start : held.stop] for held in self._columns], dim=1)

    def _queries(self, query: Tensor, step: Step) -> Tensor:
        """float32 [rows, num_heads, nope_dim + rope_dim], rotated and scaled."""
        weights = self._weights
        if weights.query_norm is not None and weights.expand_query is not None:
            normed = rms_norm(query, weights.query_norm, self._latent.norm_eps)
            query = weights.expand_query(normed)
        queries = query.reshape(len(query), self.num_heads, self._key_dim).float()
        nope = self._latent.nope_dim
        rotated = rotate(queries[..., nope:], step.cos, step.sin)
        return torch.cat((queries[..., :nope], rotated), dim=2).mul_(self._scale)

    def _attend_prompt(self, kernel: LatentKernel, queries: Tensor, attended: Tensor) -> None:
        """Rows of prompts, from whole latents; each head is one rank's."""
        own = kernel.prompt.take(queries)[:, self._prompt_heads].contiguous()
        found = kernel.attend_prompt(self._layer, own, self._weights.expansions)
        kernel.prompt.put(attended[:, self._prompt_heads], found.to(attended.dtype))

    def _attend_generated(self, kernel: LatentKernel, queries: Tensor, attended: Tensor) -> None:
        """Rows of generated tokens, from what the ranks hold."""
        own, nope = kernel.generated.take(queries), self._latent.nope_dim
        absorbed = torch.cat((self._weights.absorb(own[..., :nope]), own[..., nope:]), dim=2)
        mean, lse = kernel.attend_generated(self._layer, self._sharing.gather_queries(absorbed))
        found = self._weights.values(self._sharing.merge(mean, lse))
        kernel.generated.put(attended, found.to(attended.dtype))
