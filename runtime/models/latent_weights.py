"""The weights of latent attention, from the form of a checkpoint to the one that is computed.

Done once, when a layer is loaded, in float64:

  - rotary pairs, side by side in checkpoints, are moved half a head apart, as `rotate` wants them;
  - gain of the latent's norm and basis of the cached latents go into what reads them, an
    orthogonal basis also into what makes them (see `parallel.latent.transforms.basis`);
  - what reads the latents is cut to the columns that the rank holds.

Keys and values are expanded from whole latents for prompts, and queries absorbed into held columns
for generated tokens: the rank has both forms of the same weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from twinflow.parallel.latent.plan import LatentPlan
from twinflow.parallel.latent.sharing.base import LatentSharing
from twinflow.parallel.latent.transforms.basis import LatentBasis
from twinflow.runtime.attention.latent.base import LatentHeads
from twinflow.runtime.models.blocks import LayerWeights
from twinflow.runtime.models.config import LatentConfig, ModelConfig
from twinflow.runtime.models.head_products import HeadProducts
from twinflow.runtime.models.linear import Linear, LinearFactory


def latent_config(config: ModelConfig) -> LatentConfig:
    """The latent attention of a model.

    Raises:
        ValueError: it has none.
    """
    if config.latent is None:
        raise ValueError(f"{config.architecture} has no latent attention")
    return config.latent


def latent_heads(config: ModelConfig) -> LatentHeads:
    """The sizes that a kernel needs to know."""
    latent = latent_config(config)
    return LatentHeads(
        num_heads=config.num_heads,
        kv_rank=latent.kv_rank,
        nope_dim=latent.nope_dim,
        rope_dim=latent.rope_dim,
        value_dim=latent.value_dim,
    )


@dataclass(frozen=True, slots=True)
class LatentWeights:
    """What a block computes with; O output heads, H columns held.

    Attributes:
        compress: hidden to [queries of O heads, or compressed query | latent | rotary key].
        query_norm: [query_rank], None without a compressed query.
        expand_query: query_rank to queries of O heads, None without a compressed query.
        latent_norm: [kv_rank] gain.
        to_basis: normalised latent to its basis, None if `compress` makes it in its basis.
        absorb: [O, nope_dim, H] queries to latents.
        values: [O, H, value_dim] means of latents to values.
        expansions: latents to keys and values of some prompt heads each.
    """

    compress: Linear
    query_norm: Tensor | None
    expand_query: Linear | None
    latent_norm: Tensor
    to_basis: Linear | None
    absorb: HeadProducts
    values: HeadProducts
    expansions: tuple[Linear, ...]

    @classmethod
    def take(cls, config: ModelConfig, weights: LayerWeights, plan: LatentPlan) -> "LatentWeights":
        """Take a layer's parameters and bring them into form."""
        latent, sharing = latent_config(config), plan.sharing
        gain, expand = weights.take("latent_norm"), weights.take("expand.weight")
        compress, query_norm, expand_query = weights.take("compress.weight"), None, None
        if latent.query_rank is None:
            _separate_pairs(compress[: -latent.kv_rank - latent.rope_dim], latent)
        else:
            query_norm = weights.take("query_norm")
            expanded = weights.take("expand_query.weight")
            _separate_pairs(expanded, latent)
            expand_query = weights.linears.create(expanded)
        compress[-latent.rope_dim :] = half_apart(compress[-latent.rope_dim :])
        factor, to_basis = 1.0, None
        if plan.transform is not None:
            basis = plan.transform.basis(weights.layer)
            expand = _in_basis(expand, gain, basis)
            gain = torch.ones_like(gain)
            factor = basis.logit_factor(sharing.shards.rank)
            to_basis = _apply(basis, compress, latent, weights.linears)
        heads = expand.view(-1, latent.nope_dim + latent.value_dim, latent.kv_rank)
        return cls(
            compress=weights.linears.create(compress),
            query_norm=query_norm,
            expand_query=expand_query,
            latent_norm=gain,
            to_basis=to_basis,
            absorb=HeadProducts.create(
                _absorb(heads[:, : latent.nope_dim], sharing, factor), weights.linears
            ),
            values=HeadProducts.create(
                _values(heads[:, latent.nope_dim :], sharing), weights.linears
            ),
            expansions=_expansions(config, heads, sharing, weights.linears),
        )


def half_apart(rows: Tensor) -> Tensor:
    """Rows 0, 2, 4, …, then 1, 3, 5, … of the second last dimension: of rotary pairs that lay side
    by side, the first ones come first."""
    return torch.cat((rows[..., 0::2, :], rows[..., 1::2, :]), dim=-2)


def _separate_pairs(queries: Tensor, latent: LatentConfig) -> None:
    """Rearrange, in place, the rows [heads * (nope_dim + rope_dim), in] that make queries."""
    heads = queries.view(-1, latent.nope_dim + latent.rope_dim, queries.shape[1])
    heads[:, latent.nope_dim :] = half_apart(heads[:, latent.nope_dim :])


def _in_basis(expand: Tensor, gain: Tensor, basis: LatentBasis) -> Tensor:
    """Keys and values from latents without gain, in a basis: W diag(gain) A⁻ᵀ."""
    inverse = basis.inverse.to(expand.device)
    return (expand.double() * gain.double() @ inverse.mT).to(expand.dtype)


def _apply(
    basis: LatentBasis, compress: Tensor, latent: LatentConfig, linears: LinearFactory
) -> Linear | None:
    """Let latents be made in a basis, in place; if a norm is in between, by a product behind it."""
    matrix = basis.matrix.to(compress.device)
    if not basis.orthogonal:
        return linears.create(matrix.mT.to(compress.dtype).contiguous())
    rows = compress[-latent.kv_rank - latent.rope_dim : -latent.rope_dim]
    rows.copy_(matrix.mT @ rows.double())
    return None


def _absorb(keys: Tensor, sharing: LatentSharing, factor: float) -> Tensor:
    """[heads, nope_dim, held columns] of [heads, nope_dim, kv_rank]."""
    held = [keys[..., c.start : c.stop] for c in sharing.columns(keys.shape[2])]
    return (torch.cat(held, dim=2).double() * factor).to(keys.dtype)


def _values(values: Tensor, sharing: LatentSharing) -> Tensor:
    """[heads, held columns, value_dim] of [heads, value_dim, kv_rank]; zero where the values are
    another shard's to contribute."""
    rank = values.shape[2]
    mine = sharing.value_columns(rank)
    held = [
        values[..., c.start : c.stop]
        if c in mine
        else torch.zeros_like(values[..., c.start : c.stop])
        for c in sharing.columns(rank)
    ]
    return torch.cat(held, dim=2).mT.contiguous()


def _expansions(
    config: ModelConfig, heads: Tensor, sharing: LatentSharing, linears: LinearFactory
) -> tuple[Linear, ...]:
    """Of as many prompt heads at a time as the kernel asks for."""
    first = sharing.output_heads(config.num_heads).start
    prompt = sharing.prompt_heads(config.num_heads)
    group = latent_heads(config).expanded_heads(len(prompt))
    starts = range(prompt.start - first, prompt.stop - first, group)
    return tuple(linears.create(heads[s : s + group].flatten(0, 1).contiguous()) for s in starts)
