"""A decoder with latent attention written out once more, in float64 and without a cache.

Follows the equations of DeepSeek-V2 (arXiv 2405.04434, section 2.1) and, for generated tokens, of
tensor-parallel latent attention (arXiv 2508.15881, equations 6 and 7) with the exact norm. Dense
layers only.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from twinflow.parallel.latent.scheme import LatentScheme
from twinflow.parallel.latent.transforms.basis import LatentTransform
from twinflow.runtime.models.config import LatentConfig, ModelConfig
from twinflow.runtime.models.rope import attention_scale, frequencies, latent_softmax_scale


@dataclass
class LatentOracle:
    """Logits of a whole sequence at once.

    Attributes:
        config: of the model.
        state: its tensors, under their Hugging Face names.
        scheme: how generated tokens attend; None for exactly.
        transform: basis of the latents.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    scheme: LatentScheme | None = None
    transform: LatentTransform | None = None

    def logits(self, tokens: list[int], prompt_tokens: int) -> Tensor:
        """[tokens, vocab] in float64."""
        hidden = self._weight("model.embed_tokens.weight")[tokens]
        for layer in range(self.config.num_layers):
            name = f"model.layers.{layer}."
            rows = self._norm(hidden, f"{name}input_layernorm.weight", self.config.rms_norm_eps)
            hidden = hidden + self._attend(layer, f"{name}self_attn.", rows, prompt_tokens)
            rows = self._norm(
                hidden, f"{name}post_attention_layernorm.weight", self.config.rms_norm_eps
            )
            gate, up, down = (self._weight(f"{name}mlp.{n}_proj.weight") for n in _MLP)
            hidden = hidden + (torch.nn.functional.silu(rows @ gate.T) * (rows @ up.T)) @ down.T
        rows = self._norm(hidden, "model.norm.weight", self.config.rms_norm_eps)
        return rows @ self._weight("lm_head.weight").T

    def _attend(self, layer: int, name: str, rows: Tensor, prompt_tokens: int) -> Tensor:
        latent, count = self._latent, len(rows)
        query = rows
        query_name = "q_proj"
        if latent.query_rank is not None:
            query = rows @ self._weight(f"{name}q_a_proj.weight").T
            query = self._norm(query, f"{name}q_a_layernorm.weight", latent.norm_eps)
            query_name = "q_b_proj"
        queries = (query @ self._weight(f"{name}{query_name}.weight").T).view(
            count, self.config.num_heads, -1
        )
        compressed = rows @ self._weight(f"{name}kv_a_proj_with_mqa.weight").T
        c, rope = compressed[:, : latent.kv_rank], compressed[:, latent.kv_rank :]
        c = c * torch.rsqrt(c.pow(2).mean(-1, keepdim=True) + latent.norm_eps)
        keys, values = self._expansions(layer, name)
        if self.transform is not None:
            c = c @ self.transform.basis(layer).matrix
        scale = queries.shape[2] ** -0.5 * latent_softmax_scale(self.config.rope_scaling)
        absorbed = torch.einsum("thp,hpc->thc", queries[..., : latent.nope_dim], keys) * scale
        rotated = self._rotate(queries[..., latent.nope_dim :]) * scale
        positions = torch.einsum("thr,sr->hts", rotated, self._rotate(rope[:, None])[:, 0])
        scores = torch.einsum("thc,sc->hts", absorbed, c) + positions
        attended = torch.einsum("hts,sc,hvc->thv", _softmax(scores), c, values)
        scheme = self.scheme
        if scheme is not None and scheme.kind == "tpla" and layer not in scheme.exact_layers:
            found = self._sliced(layer, absorbed, positions, c, values)
            attended[prompt_tokens:] = found[prompt_tokens:]
        return attended.flatten(1) @ self._weight(f"{name}o_proj.weight").T

    def _sliced(
        self, layer: int, absorbed: Tensor, positions: Tensor, c: Tensor, values: Tensor
    ) -> Tensor:
        """The sum over shards that each see some columns."""
        assert self.scheme is not None
        common, width = self.scheme.common, self.scheme.slice_width(self._latent.kv_rank)
        total = torch.zeros(len(c), len(values), values.shape[1], dtype=torch.float64)
        for shard in range(self.scheme.shards):
            own = range(common + shard * width, common + (shard + 1) * width)
            seen = [*range(common), *own]
            factor = self.transform.basis(layer).logit_factor(shard) if self.transform else 1.0
            scores = factor * torch.einsum("thc,sc->hts", absorbed[..., seen], c[:, seen])
            weights = _softmax(scores + positions)
            valued = seen if shard == 0 else list(own)
            total += torch.einsum("hts,sc,hvc->thv", weights, c[:, valued], values[..., valued])
        return total

    def _expansions(self, layer: int, name: str) -> tuple[Tensor, Tensor]:
        """[heads, nope_dim, C] and [heads, value_dim, C], from latents without gain."""
        latent = self._latent
        expand = self._weight(f"{name}kv_b_proj.weight")
        expand = expand * self._weight(f"{name}kv_a_layernorm.weight")
        if self.transform is not None:
            expand = expand @ self.transform.basis(layer).inverse.T
        heads = expand.view(self.config.num_heads, -1, latent.kv_rank)
        return heads[:, : latent.nope_dim], heads[:, latent.nope_dim :]

    def _rotate(self, heads: Tensor) -> Tensor:
        """Rotate the pairs (0, 1), (2, 3), … of [tokens, heads, rope_dim]."""
        positions = torch.arange(len(heads))
        angles = positions[:, None].double() * frequencies(self.config, positions).double()
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]
        pairs = torch.view_as_complex(heads.contiguous().view(*heads.shape[:2], -1, 2))
        scale = attention_scale(self.config.rope_scaling)
        return torch.view_as_real(pairs * turn).flatten(2) * scale

    def _norm(self, rows: Tensor, name: str, eps: float) -> Tensor:
        mean = rows.pow(2).mean(-1, keepdim=True)
        return rows * torch.rsqrt(mean + eps) * self._weight(name)

    def _weight(self, name: str) -> Tensor:
        return self.state[name].double()

    @property
    def _latent(self) -> LatentConfig:
        assert self.config.latent is not None
        return self.config.latent


_MLP = ("gate", "up", "down")


def _softmax(scores: Tensor) -> Tensor:
    """Causal softmax of [heads, tokens, tokens]."""
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -math.inf).softmax(-1)
