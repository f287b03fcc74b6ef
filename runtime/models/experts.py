"""A mixture of experts in place of the MLP: each row passes few of many MLPs.

    rows ── router ──► k experts per row, with weights
      │ sort by expert
      ▼
    [ expert 0's rows | expert 3's rows | … ] ──► products ──► k results per row, added up

A row's results are added in the order in which its experts were chosen, in float32, so that
nothing else in the step matters. Shared experts, which every row passes, are one more MLP. The
weights of a rank are a part of every expert, or whole experts (`Placement.expert_parallel`);
either way every rank routes all rows, adds up what it has, and one `all_reduce` does the rest.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from twinflow.runtime.models.base import Placement
from twinflow.runtime.models.blocks import LayerNames, LayerWeights, MLPBlock
from twinflow.runtime.models.config import ModelConfig, MoEConfig
from twinflow.runtime.models.expert_products import create_products
from twinflow.runtime.models.expert_traffic import ExpertCounter
from twinflow.runtime.models.functions import gated_silu
from twinflow.runtime.models.router import Router
from twinflow.runtime.models.sharding import Cut, even_cut, inner_cut
from twinflow.runtime.models.weights import Parameter
from twinflow.runtime.row_tile import RowTile


@dataclass(frozen=True, slots=True)
class _Names:
    """Where a family keeps its experts, below the layer; `{}` is the number of an expert."""

    router: str
    gate: str
    up: str
    down: str


_MIXTRAL_NAMES = _Names(
    router="block_sparse_moe.gate",
    gate="block_sparse_moe.experts.{}.w1",
    up="block_sparse_moe.experts.{}.w3",
    down="block_sparse_moe.experts.{}.w2",
)
_USUAL_NAMES = _Names(
    router="mlp.gate",
    gate="mlp.experts.{}.gate_proj",
    up="mlp.experts.{}.up_proj",
    down="mlp.experts.{}.down_proj",
)


@dataclass(frozen=True, slots=True)
class _Share:
    """What a rank holds of the experts of a layer.

    Attributes:
        experts: experts of which it holds anything.
        inner: what it holds of the inner dimension of each of them.
    """

    experts: Cut
    inner: Cut

    @classmethod
    def of(cls, moe: MoEConfig, placement: Placement) -> "_Share":
        """The share of a rank."""
        if placement.expert_parallel:
            return cls(even_cut(moe.num_experts, placement.ranks), Cut.whole(moe.expert_size))
        inner = inner_cut(moe.expert_size, placement.ranks, "the inner size of experts")
        return cls(Cut.whole(moe.num_experts), inner)

    def cut(self, expert: int, cut: Cut) -> Cut:
        """`cut` for an expert that the rank holds, nothing for another."""
        held = self.experts.start <= expert < self.experts.stop
        return cut if held else Cut.none(cut.total)


class ExpertMLP(MLPBlock):
    """Routed experts, and perhaps shared ones."""

    def __init__(self, config: ModelConfig, weights: LayerWeights) -> None:
        moe = _moe(config)
        share = _Share.of(moe, weights.placement)
        count, inner, hidden = share.experts.size, share.inner.size, config.hidden_size
        gate_up = weights.take("expert_gate_up.weight").view(count, 2 * inner, hidden)
        down = weights.take("expert_down.weight").view(count, hidden, inner)
        bias = weights.take("correction_bias") if moe.correction_bias else None
        self._ranks = weights.placement.ranks
        self._experts = share.experts
        self._router = Router(moe, weights.linear("router"), bias)
        expert_bytes = 3 * moe.expert_size * hidden * gate_up.itemsize
        self._counted = (weights.layer, moe.num_experts, expert_bytes, gate_up.device)
        self._products = create_products(gate_up, down, weights.linears)
        self._shared = (
            (weights.linear("shared_gate_up"), weights.linear("shared_down"))
            if moe.shared_size
            else None
        )

    @staticmethod
    def parameters(config: ModelConfig, layer: int, placement: Placement) -> list[Parameter]:
        """See the base class."""
        moe, hidden = _moe(config), Cut.whole(config.hidden_size)
        names = _MIXTRAL_NAMES if config.architecture == "MixtralForCausalLM" else _USUAL_NAMES
        declare, share = LayerNames(layer), _Share.of(moe, placement)
        wide, narrow = {}, {}
        for expert in range(moe.num_experts):
            wide[names.gate.format(expert)] = share.cut(expert, share.inner)
            wide[names.up.format(expert)] = share.cut(expert, share.inner)
            narrow[names.down.format(expert)] = share.cut(expert, hidden)
        router = {names.router: Cut.whole(moe.num_experts)}
        found = [
            declare.matrices("router", router, hidden, torch.float32),
            declare.matrices("expert_gate_up", wide, hidden),
            declare.matrices("expert_down", narrow, share.inner),
        ]
        if moe.correction_bias:
            name = f"{names.router}.e_score_correction_bias"
            bias = declare.vector("correction_bias", name, moe.num_experts)
            found.append(replace(bias, dtype=torch.float32))
        return found + _shared_parameters(config, declare, placement)

    def new_counter(self) -> ExpertCounter:
        """See the base class."""
        return ExpertCounter(*self._counted)

    def __call__(self, rows: Tensor, num_rows: int, counter: ExpertCounter | None = None) -> Tensor:
        """See the base class."""
        out = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device)
        chosen, weights = self._router(rows)
        routed = _Routed(rows[:num_rows], chosen[:num_rows], weights[:num_rows])
        self._add_routed(routed, out[:num_rows], counter)
        if self._shared is not None:
            gate_up, down = self._shared
            out += down(gated_silu(gate_up(rows)))
        return self._ranks.all_reduce(out.to(rows.dtype))

    def _add_routed(self, routed: "_Routed", out: Tensor, counter: ExpertCounter | None) -> None:
        """Add to `out` what the experts of this rank make of rows."""
        flat = routed.experts.reshape(-1)
        # Not bincount, for which the host waits.
        counts = flat.new_zeros(self._experts.total).scatter_add_(0, flat, torch.ones_like(flat))
        if counter is not None:
            counter.note(counts)
        groups = _Groups.of(routed.experts, counts, self._experts, self._products.row_tile)
        results = self._products(routed.rows.index_select(0, groups.rows), groups.sizes)
        results[-1] = 0.0  # stands for experts of other ranks
        places, weights = groups.places.unbind(1), routed.weights.unbind(1)
        for place, weight in zip(places, weights, strict=True):
            # Product and sum stay separate operations, see `rotate`.
            out += results.index_select(0, place).float().mul_(weight[:, None])


@dataclass(frozen=True, slots=True)
class _Routed:
    """Rows without padding, [rows, hidden], their experts and weights, [rows, k] each."""

    rows: Tensor
    experts: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class _Groups:
    """Rows sorted by expert, each group padded to a row tile.

    Attributes:
        rows: int64 [places] row that lies at each place; row 0 where there is padding.
        sizes: int64 [experts of this rank] places of each group.
        places: int64 [rows, k] where the row lies for each of its experts; the last place of all,
            which is in no group, for experts of other ranks.
    """

    rows: Tensor
    sizes: Tensor
    places: Tensor

    @classmethod
    def of(cls, chosen: Tensor, counts: Tensor, held: Cut, tile: RowTile) -> "_Groups":
        """Group the rows of `chosen` [rows, k]; `counts` [all experts] are how often each is.

        Nothing here depends on values on the device, so that the host need not wait for them.
        """
        last = chosen.numel() + held.size * (tile.rows - 1)
        local = chosen.reshape(-1) - held.start
        foreign = (local < 0) | (local >= held.size)
        local = local.masked_fill_(foreign, held.size)
        order = local.argsort(stable=True)
        held_counts = counts[held.start : held.stop]
        sizes = (held_counts + (tile.rows - 1)) // tile.rows * tile.rows
        padding_before = F.pad((sizes - held_counts).cumsum(0), (1, 0))
        sorted_places = torch.arange(len(order), device=order.device)
        sorted_places += padding_before.index_select(0, local.index_select(0, order))
        sorted_places.masked_fill_(foreign.index_select(0, order), last)
        rows = order.new_zeros(last + 1)
        rows[sorted_places] = order // chosen.shape[1]
        places = torch.empty_like(order)
        places[order] = sorted_places
        return cls(rows, sizes, places.view_as(chosen))


def _shared_parameters(
    config: ModelConfig, names: LayerNames, placement: Placement
) -> list[Parameter]:
    """Those of the shared experts, which are one MLP that is always cut by its inner dimension."""
    size = _moe(config).shared_size
    if not size:
        return []
    inner = inner_cut(size, placement.ranks, "the inner size of shared experts")
    rows = {"mlp.shared_experts.gate_proj": inner, "mlp.shared_experts.up_proj": inner}
    return [
        *names.outputs("shared_gate_up", rows, config.hidden_size),
        *names.inputs("shared_down", "mlp.shared_experts.down_proj", config.hidden_size, inner),
    ]


def _moe(config: ModelConfig) -> MoEConfig:
    if config.moe is None:
        raise ValueError("a model without experts has no layer of experts")
    return config.moe
