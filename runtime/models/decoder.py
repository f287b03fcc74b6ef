"""The decoder that all supported models have in common.

    x += attention(norm(x))
    x += mlp(norm(x))

Which attention and which MLP a layer has follows from `ModelConfig`; there is no code for a
particular member of a family. Norm statistics, attention and logits are float32 for any dtype of
the weights.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twinflow.parallel.ranks.base import RankGroup
from twinflow.runtime.attention.base import Attention
from twinflow.runtime.kernels.base import LayerStack, StackedLayer
from twinflow.runtime.models.attention_parts import attention_parts
from twinflow.runtime.models.base import (
    ForwardPass,
    Model,
    OnWarning,
    Placement,
    RowBatch,
    Weights,
)
from twinflow.runtime.models.blocks import (
    AttentionBlock,
    LayerNames,
    LayerWeights,
    MLPBlock,
    Step,
)
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.dense import DenseMLP
from twinflow.runtime.models.expert_traffic import ExpertTraffic
from twinflow.runtime.models.experts import ExpertMLP
from twinflow.runtime.models.heads import HeadAttention
from twinflow.runtime.models.latent import LatentAttention
from twinflow.runtime.models.rope import RotaryTable
from twinflow.runtime.models.sharding import Cut, padded_cut
from twinflow.runtime.models.vocabulary import Embedding, Head
from twinflow.runtime.models.weights import (
    Parameter,
    Source,
    listing,
    load_parameters,
    source_shapes,
)
from twinflow.runtime.row_tile import RowTile


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One layer.

    Attributes:
        attention_norm: [hidden] before attention; None where another rank has it.
        attention: the first half, likewise.
        mlp_norm: [hidden] before the MLP.
        mlp: the second half.
    """

    attention_norm: Tensor | None
    attention: AttentionBlock | None
    mlp_norm: Tensor
    mlp: MLPBlock


class Decoder(Model):
    """A decoder with the weights of one rank; made by `Decoder.load`."""

    def __init__(
        self, config: ModelConfig, placement: Placement, parameters: dict[str, Tensor]
    ) -> None:
        super().__init__(config, placement)
        linears, ranks = placement.kernels.linears(), placement.ranks
        vocabulary = placement.of_the_rest.ranks
        embedding = parameters.pop("embedding")
        self.embedding = Embedding(embedding, vocabulary, placement.dtype)
        self.layers = [
            _take_layer(config, LayerWeights(layer, parameters, linears, placement))
            for layer in range(config.num_layers)
        ]
        self.attention_parts = attention_parts(ranks, placement.owners)
        self.final_norm = parameters.pop("final_norm")
        head = embedding if config.tie_word_embeddings else parameters.pop("head")
        self.head = Head(linears.create(head), vocabulary, config.vocab_size)
        self._row_tile = _common_tile(linears.row_tile, ranks, self.device)
        self.stack = self._stack()
        self.rotary = RotaryTable(config, self.device)

    @classmethod
    def parameters(cls, config: ModelConfig, placement: Placement) -> list[Parameter]:
        """See the base class."""
        tokens, padded = padded_cut(config.vocab_size, placement.of_the_rest.ranks)
        hidden = Cut.whole(config.hidden_size)

        def vocabulary(key: str, name: str) -> Parameter:
            return Parameter(key, (Source(name, tokens, hidden),), padded_rows=padded)

        found = [
            vocabulary("embedding", "model.embed_tokens.weight"),
            Parameter("final_norm", (Source("model.norm.weight", hidden),)),
        ]
        if not config.tie_word_embeddings:
            found.append(vocabulary("head", "lm_head.weight"))
        for layer in range(config.num_layers):
            found += _layer_parameters(config, layer, placement)
        return found

    @classmethod
    def load(
        cls, config: ModelConfig, placement: Placement, weights: Weights, on_warning: OnWarning
    ) -> "Decoder":
        """See the base class."""
        needed = cls.parameters(config, placement)
        loaded, others = load_parameters(
            needed, weights, placement.dtype, placement.device, placement.matrix_dtype
        )
        if placement.owners is not None:  # what other ranks have is not unused
            whole = source_shapes(cls.parameters(config, replace(placement, owners=None)))
            others = [name for name in others if name not in whole]
        unused = unused_tensors(config, others)
        if unused:
            on_warning(f"{len(unused)} tensors of the checkpoint are not used: {listing(unused)}")
        return cls(config, placement, loaded)

    @property
    def num_heads(self) -> int:
        """See the base class."""
        return next(one.attention.num_heads for one in self.layers if one.attention is not None)

    def _stack(self) -> LayerStack | None:
        """The layers as one, where this rank has all of each and the kernels can do it."""
        if self.placement.ranks.size > 1:
            return None
        stacked = [_stacked(layer) for layer in self.layers]
        whole = [layer for layer in stacked if layer is not None]
        if len(whole) < len(stacked):
            return None
        return self.placement.kernels.stack(whole, self.config.rms_norm_eps)

    @property
    def row_tile(self) -> RowTile:
        """See the base class."""
        return self._row_tile

    def new_traffic(self) -> ExpertTraffic | None:
        """See the base class."""
        counters = [layer.mlp.new_counter() for layer in self.layers]
        counting = [counter for counter in counters if counter is not None]
        return ExpertTraffic(counting) if counting else None

    def begin(
        self,
        batch: RowBatch,
        attention: Attention,
        hidden: Tensor | None = None,
        traffic: ExpertTraffic | None = None,
    ) -> ForwardPass:
        """See the base class."""
        if hidden is None:
            hidden = self.embedding(batch.token_ids)
        cos, sin = self.rotary.lookup(batch.positions, batch.end_position)
        return _DecoderPass(self, Step(batch, attention, cos, sin), hidden, traffic)


def unused_tensors(config: ModelConfig, others: Iterable[str]) -> list[str]:
    """Those among tensors that are no parameter of the model which deserve a warning.

    Not worth one are buffers that old checkpoints contain, and the layers behind the last one
    that predict further tokens (`ModelConfig.draft_layers`).
    """
    end = config.num_layers + config.draft_layers
    drafts = {f"model.layers.{layer}." for layer in range(config.num_layers, end)}
    return [
        name
        for name in others
        if not name.endswith("rotary_emb.inv_freq") and _layer_prefix(name) not in drafts
    ]


def _layer_prefix(name: str) -> str | None:
    found = re.match(r"model\.layers\.\d+\.", name)
    return found.group() if found else None


def _attention_type(config: ModelConfig) -> type[AttentionBlock]:
    return HeadAttention if config.latent is None else LatentAttention


def _mlp_type(config: ModelConfig, layer: int) -> type[MLPBlock]:
    return ExpertMLP if config.moe is not None and layer in config.moe.layers else DenseMLP


def _layer_parameters(config: ModelConfig, layer: int, placement: Placement) -> list[Parameter]:
    names, hidden = LayerNames(layer), config.hidden_size
    found: list[Parameter] = []
    if placement.has_attention(layer):
        found.append(names.vector("attention_norm", "input_layernorm.weight", hidden))
        found += _attention_type(config).parameters(config, layer, placement.of_attention)
    return [
        *found,
        names.vector("mlp_norm", "post_attention_layernorm.weight", hidden),
        *_mlp_type(config, layer).parameters(config, layer, placement.of_the_rest),
    ]


def _take_layer(config: ModelConfig, weights: LayerWeights) -> DecoderLayer:
    layer, placement = weights.layer, weights.placement
    of_attention = replace(weights, placement=placement.of_attention)
    has_attention = placement.has_attention(layer)
    return DecoderLayer(
        attention_norm=weights.take("attention_norm") if has_attention else None,
        attention=_attention_type(config)(config, of_attention) if has_attention else None,
        mlp_norm=weights.take("mlp_norm"),
        mlp=_mlp_type(config, layer)(config, replace(weights, placement=placement.of_the_rest)),
    )


def _stacked(layer: DecoderLayer) -> StackedLayer | None:
    """A layer as kernels want it for a stack; None if it is of another kind."""
    attention, mlp = layer.attention, layer.mlp
    if (
        not isinstance(attention, HeadAttention)
        or not isinstance(mlp, DenseMLP)
        or layer.attention_norm is None
    ):
        return None
    return StackedLayer(layer.attention_norm, *attention.weights, layer.mlp_norm, *mlp.weights)


def _common_tile(tile: RowTile, ranks: RankGroup, device: torch.device) -> RowTile:
    """What suits all ranks: their matrices may differ in size and have been measured apart."""
    own = torch.tensor([[float(tile.rows), float(tile.batch_invariant)]], device=device)
    found = ranks.all_gather(own).view(ranks.size, 2)
    rows, invariant = found.unbind(1)
    return RowTile(int(rows.max()), bool(invariant.min()))


class _DecoderPass(ForwardPass):
    def __init__(
        self, model: Decoder, step: Step, hidden: Tensor, traffic: ExpertTraffic | None
    ) -> None:
        self._model = model
        self._step = step
        self._hidden = hidden
        self._traffic = traffic

    @property
    def hidden(self) -> Tensor:
        return self._hidden

    def run_layers(self, first: int, end: int) -> None:
        stack, attention = self._model.stack, self._step.attention
        if stack is not None and stack.takes(self._hidden, attention):
            stack.run(self._hidden, self._step.cos, attention, range(first, end))
        else:
            super().run_layers(first, end)

    def run_groups(self, groups: Sequence[range]) -> None:
        hidden, eps = self._hidden, self._model.config.rms_norm_eps
        num_rows, kernels = self._step.batch.num_rows, self._model.placement.kernels
        delta: Tensor | None = None  # of the MLP before, added with the norm of the next block
        for group in groups:
            attended, delta = self._attend(group, delta), None
            for index, attention in zip(group, attended, strict=True):
                if delta is not None:
                    hidden += delta
                layer = self._model.layers[index]
                normed = kernels.add_norm(hidden, attention, layer.mlp_norm, eps)
                counter = None if self._traffic is None else self._traffic.counter(index)
                delta = layer.mlp(normed, num_rows, counter)
        if delta is not None:
            hidden += delta

    def _attend(self, group: range, delta: Tensor | None) -> Sequence[Tensor]:
        """What the attention of each layer of a group makes of the hidden states plus `delta`."""
        hidden, model, parts = self._hidden, self._model, dict[int, Tensor]()
        for index in group:
            layer = model.layers[index]
            if layer.attention is not None and layer.attention_norm is not None:
                eps, norm = model.config.rms_norm_eps, layer.attention_norm
                normed = model.placement.kernels.add_norm(hidden, delta, norm, eps)
                delta = None
                parts[index] = layer.attention.part(normed, self._step)
        if delta is not None:
            hidden += delta
        return model.attention_parts.join(group, parts, hidden)

    def logits(self, rows: Tensor) -> Tensor:
        model = self._model
        hidden, kernels = self._hidden.index_select(0, rows), model.placement.kernels
        normed = kernels.add_norm(hidden, None, model.final_norm, model.config.rms_norm_eps)
        return model.head(normed)
