"""The arithmetic of a model: floating point operations and bytes, by layer.

Counted from the configuration, for one rank of those that compute the model together. Layers are
averaged: a step is summed up by how many layers rows cross, not by which, so a model whose first
layers are dense counts its experts as spread over all layers. Nothing here knows how fast
anything is.
"""

from dataclasses import dataclass

from twinflow.runtime.models.config import ModelConfig

# A multiplication and an addition.
_FLOPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What one layer costs, and the head.

    Attributes:
        num_layers: layers of the model.
        dense_flops: of a row in the matrices that all rows use: projections, MLP, shared experts,
            router.
        dense_bytes: of those matrices.
        num_experts: routed experts of a layer; 0 for none.
        experts_per_token: routed experts that a row is sent to.
        expert_flops: of a row in its routed experts.
        expert_bytes: of one routed expert.
        pair_flops: of a row and a token that it attends to.
        kv_bytes: of a token.
        head_flops: of a row whose logits are computed, once for the model.
        head_bytes: of the matrix that computes logits.
        row_tile: rows are padded to a multiple of this.
    """

    num_layers: int
    dense_flops: float
    dense_bytes: float
    num_experts: int = 0
    experts_per_token: int = 0
    expert_flops: float = 0.0
    expert_bytes: float = 0.0
    pair_flops: float
    kv_bytes: float
    head_flops: float
    head_bytes: float
    row_tile: int = 1

    @classmethod
    def of(
        cls, config: ModelConfig, *, element_bytes: int, ranks: int = 1, row_tile: int = 1
    ) -> "ModelShape":
        """Count a model.

        Args:
            config: of the model.
            element_bytes: of a weight and of an element of KV.
            ranks: that share the model; each has an equal part of everything but latent KV, of
                which each has all.
            row_tile: see above.
        """
        dense, pair, kv = _attention(config)
        experts = expert = moe_share = 0.0
        if config.moe is not None:
            moe_share = len(config.moe.layers) / config.num_layers
            expert = 3 * config.hidden_size * config.moe.expert_size * moe_share
            experts = expert * config.moe.experts_per_token
            dense += 3 * config.hidden_size * config.moe.shared_size * moe_share
            dense += config.hidden_size * config.moe.num_experts * moe_share
        dense += 3 * config.hidden_size * config.intermediate_size * (1 - moe_share)
        head = config.hidden_size * config.vocab_size
        kv_ranks = 1 if config.latent else min(ranks, config.num_kv_heads)
        return cls(
            num_layers=config.num_layers,
            dense_flops=_FLOPS * dense / ranks,
            dense_bytes=dense * element_bytes / ranks,
            num_experts=config.moe.num_experts if config.moe else 0,
            experts_per_token=config.moe.experts_per_token if config.moe else 0,
            expert_flops=_FLOPS * experts / ranks,
            expert_bytes=expert * element_bytes / ranks,
            pair_flops=_FLOPS * pair / ranks,
            kv_bytes=kv * element_bytes / kv_ranks,
            head_flops=_FLOPS * head / ranks,
            head_bytes=head * element_bytes / ranks,
            row_tile=row_tile,
        )

    def padded(self, rows: int) -> int:
        """Rows that are computed for `rows` rows."""
        return -(-rows // self.row_tile) * self.row_tile

    def experts_hit(self, rows: int) -> float:
        """Distinct routed experts that `rows` rows are expected to need in a layer.

        E (1 - (1 - k/E)^rows), for rows that choose k of E experts independently and evenly. Real
        rows agree more often than that: it is an upper bound of the expectation.
        """
        if not self.num_experts:
            return 0.0
        missed = 1.0 - self.experts_per_token / self.num_experts
        return self.num_experts * (1.0 - missed**rows)


def _attention(config: ModelConfig) -> tuple[float, float, float]:
    """Elements of the projections, multiplications of a pair, elements of KV of a token."""
    hidden, heads = config.hidden_size, config.num_heads
    latent = config.latent
    if latent is None:
        projections = hidden * config.head_dim * (2 * heads + 2 * config.num_kv_heads)
        return projections, 2 * heads * config.head_dim, 2 * config.num_kv_heads * config.head_dim
    query_head = heads * (latent.nope_dim + latent.rope_dim)
    query = hidden * query_head
    if latent.query_rank is not None:
        query = (hidden + query_head) * latent.query_rank
    up = latent.kv_rank * heads * (latent.nope_dim + latent.value_dim)
    down = hidden * (latent.kv_rank + latent.rope_dim)
    projections = query + down + up + heads * latent.value_dim * hidden
    # Absorbed form (DeepSeek-V2, section 2.1.2): queries meet latents, and latents are summed.
    pair = heads * (2 * latent.kv_rank + latent.rope_dim)
    return projections, pair, latent.kv_rank + latent.rope_dim
