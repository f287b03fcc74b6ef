"""The two halves of a decoder layer, as the decoder sees them.

A block maps normalised rows to what is added to the residual stream. With several ranks, each rank
computes a part of the block: matrices that read the residual stream are cut by their outputs,
matrices that write it by their inputs, and one `all_reduce` adds the parts up. Norms, residual
stream and layer order are the decoder's business, requests and KV memory are nobody's here.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from twinflow.runtime.attention.base import Attention
from twinflow.runtime.models.base import Placement, RowBatch
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.expert_traffic import ExpertCounter
from twinflow.runtime.models.linear import Linear, LinearFactory
from twinflow.runtime.models.sharding import Cut
from twinflow.runtime.models.weights import Parameter, Source


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers of a step share.

    Attributes:
        batch: the rows, padding included.
        attention: prepared for the rows.
        cos: float32 [rows, 1, rotary dim], from `RotaryTable.lookup`.
        sin: like `cos`, with the sign that `rotate` needs.
    """

    batch: RowBatch
    attention: Attention
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Declares parameters of one layer: `model.layers.{layer}.…` in the checkpoint.

    Attributes:
        layer: index of the layer.
    """

    layer: int

    def vector(self, key: str, name: str, size: int) -> Parameter:
        """A whole vector `{name}`."""
        return Parameter(f"{self.layer}.{key}", (self._source(name, Cut.whole(size)),))

    def matrices(
        self, key: str, rows: dict[str, Cut], columns: Cut, dtype: torch.dtype | None = None
    ) -> Parameter:
        """Matrices `{name}.weight` stacked."""
        sources = [self._source(f"{name}.weight", cut, columns) for name, cut in rows.items()]
        return Parameter(f"{self.layer}.{key}.weight", tuple(sources), dtype=dtype)

    def outputs(
        self,
        key: str,
        rows: dict[str, Cut],
        columns: int,
        bias: bool = False,
        dtype: torch.dtype | None = None,
    ) -> list[Parameter]:
        """A linear layer that is cut by its outputs."""
        found = [self.matrices(key, rows, Cut.whole(columns), dtype)]
        if bias:
            vectors = [self._source(f"{name}.bias", cut) for name, cut in rows.items()]
            found.append(Parameter(f"{self.layer}.{key}.bias", tuple(vectors)))
        return found

    def inputs(
        self, key: str, name: str, rows: int, columns: Cut, bias: bool = False
    ) -> list[Parameter]:
        """A linear layer that is cut by its inputs.

        The bias belongs to the first rank, or else the sum of the parts would contain it once for
        each rank.
        """
        found = [self.matrices(key, {name: Cut.whole(rows)}, columns)]
        if bias:
            cut = Cut.whole(rows) if columns.start == 0 else Cut.none(rows)
            vector = self._source(f"{name}.bias", cut)
            found.append(Parameter(f"{self.layer}.{key}.bias", (vector,)))
        return found

    def _source(self, name: str, rows: Cut, columns: Cut | None = None) -> Source:
        return Source(f"model.layers.{self.layer}.{name}", rows, columns)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The loaded parameters of one layer, for its blocks to take.

    Parameters are moved out of the dictionary, so that those that are packed are freed.

    Attributes:
        layer: index of the layer.
        parameters: of the model, by key.
        linears: makes linear layers.
        placement: of the model.
    """

    layer: int
    parameters: dict[str, Tensor]
    linears: LinearFactory
    placement: Placement

    @property
    def kv_layer(self) -> int:
        """Which layer of the rank's KV is this one's."""
        return self.placement.kv_layer(self.layer)

    def take(self, key: str) -> Tensor:
        """A parameter as it is."""
        return self.parameters.pop(f"{self.layer}.{key}")

    def linear(self, key: str) -> Linear:
        """A linear layer; one whose bias is on another rank has none."""
        weight = self.take(f"{key}.weight")
        bias = self.parameters.pop(f"{self.layer}.{key}.bias", None)
        return self.linears.create(weight, bias if bias is not None and len(bias) else None)


class AttentionBlock(ABC):
    """Attention of one layer on one rank; `attention_parts` makes the parts of the ranks whole.

    Args:
        config: of the model.
        weights: of the layer; those that `parameters` declared are taken.

    Attributes:
        num_heads: query heads of this rank.
    """

    num_heads: int

    @abstractmethod
    def __init__(self, config: ModelConfig, weights: LayerWeights) -> None: ...

    @staticmethod
    @abstractmethod
    def parameters(config: ModelConfig, layer: int, placement: Placement) -> list[Parameter]:
        """What a rank needs of the checkpoint for this block.

        Raises:
            ConfigError: the heads cannot be shared by so many ranks.
        """

    @abstractmethod
    def part(self, rows: Tensor, step: Step) -> Tensor:
        """Write the keys and values of rows and let the rows attend.

        Args:
            rows: [rows, hidden], normalised; the same on all ranks.
            step: what the layers share.

        Returns:
            A new [rows, hidden]: what this rank contributes to the sum over all ranks.
        """


class MLPBlock(ABC):
    """The second half of one layer on one rank; summed up, and without keys and
    values."""

    @abstractmethod
    def __init__(self, config: ModelConfig, weights: LayerWeights) -> None: ...

    @staticmethod
    @abstractmethod
    def parameters(config: ModelConfig, layer: int, placement: Placement) -> list[Parameter]:
        """What a rank needs of the checkpoint for this block.

        Raises:
            ConfigError: the inner dimension cannot be cut for so many ranks.
        """

    def new_counter(self) -> ExpertCounter | None:
        """Counts what passes ask of the experts; None if there are none."""
        return None

    @abstractmethod
    def __call__(self, rows: Tensor, num_rows: int, counter: ExpertCounter | None = None) -> Tensor:
        """Compute rows.

        Args:
            rows: [rows, hidden], normalised; the same on all ranks.
            num_rows: how many of them, from the first, are not padding.
            counter: notes which experts they need, if anybody wants to know.

        Returns:
            A new [rows, hidden], the sum over all ranks.
        """
