"""What a runner asks of a model.

A model holds the weights of one rank. A forward pass holds what belongs to the rows of one step:
it can be driven layer by layer, so that others can work between the layers. Neither knows requests
or blocks. With several ranks, all of them take the same steps with the same rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from twinflow.parallel.latent.plan import LatentPlan
from twinflow.parallel.ranks.base import OneRank, RankGroup
from twinflow.runtime.attention.base import Attention
from twinflow.runtime.kernels.base import Kernels
from twinflow.runtime.kernels.plain import TorchKernels
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.models.expert_traffic import ExpertTraffic
from twinflow.runtime.models.owners import LayerOwners
from twinflow.runtime.models.weights import Parameter
from twinflow.runtime.row_tile import RowTile

Weights = Iterable[tuple[str, Tensor]]
OnWarning = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where and how a model is computed.

    Attributes:
        dtype: of weights, hidden states and KV.
        device: where this rank computes.
        ranks: those that compute the model together.
        expert_parallel: each rank holds whole experts, not a part of every expert.
        latents: this rank's part of latent attention; None to have all latents on every rank, as
            the model makes them.
        kernels: what computes it.
        matrix_dtype: in which matrices are loaded; None for `dtype`. Another one only if `kernels`
            can multiply with it.
        owners: whose the attention of each layer is, where single ranks have it whole; None for
            heads that all ranks share.
    """

    dtype: torch.dtype
    device: torch.device
    ranks: RankGroup = field(default_factory=OneRank)
    expert_parallel: bool = False
    latents: LatentPlan | None = None
    kernels: Kernels = field(default_factory=TorchKernels)
    matrix_dtype: torch.dtype | None = None
    owners: LayerOwners | None = None

    @property
    def of_attention(self) -> "Placement":
        """Where the attention of a layer that this rank has is computed."""
        return self if self.owners is None else replace(self, ranks=OneRank())

    @property
    def of_the_rest(self) -> "Placement":
        """Where MLPs and vocabulary are computed."""
        whole = self.owners is not None and self.owners.replicated
        return replace(self, ranks=OneRank()) if whole else self

    def has_attention(self, layer: int) -> bool:
        """Whether this rank computes attention of a layer, and has KV of it."""
        return self.owners is None or self.owners.holds(layer)

    def kv_layer(self, layer: int) -> int:
        """Which layer of this rank's KV belongs to a layer that it computes attention of."""
        return layer if self.owners is None else self.owners.place(layer)

    def num_kv_layers(self, num_layers: int) -> int:
        """Layers of this rank's KV, of so many that the model has."""
        return num_layers if self.owners is None else self.owners.count(num_layers)

    @property
    def latent_plan(self) -> LatentPlan:
        """This rank's part of latent attention."""
        return self.latents or LatentPlan.plain(self.ranks)


@dataclass(frozen=True, slots=True)
class RowBatch:
    """The rows of one step as a model sees them.

    Attributes:
        token_ids: int64 [rows].
        positions: int64 [rows], each row's position in its sequence.
        end_position: more than any position.
        num_rows: how many rows, from the first, are not padding.
    """

    token_ids: Tensor
    positions: Tensor
    end_position: int
    num_rows: int


class ForwardPass(ABC):
    """The rows of one step on their way through the layers."""

    @property
    @abstractmethod
    def hidden(self) -> Tensor:
        """[rows, hidden_size] where the rows have got to, padding included; changes with every
        layer that is run."""

    def run_layers(self, first: int, end: int) -> None:
        """Take the rows through layers [first, end), which follow on those already run. When it
        returns, the keys and values of these layers are written."""
        self.run_groups([range(layer, layer + 1) for layer in range(first, end)])

    @abstractmethod
    def run_groups(self, groups: Sequence[range]) -> None:
        """Take the rows through groups of consecutive layers, which follow on those already run.

        The attention of all layers of a group reads the hidden states from before the group; what
        each adds to them, and the MLPs, come in the order of the layers. With one layer in each
        group this is `run_layers`; with more it approximates it, keys and values included
        (EasySpec, arXiv 2502.02493, algorithm 2).
        """

    @abstractmethod
    def logits(self, rows: Tensor) -> Tensor:
        """Logits of some rows, after the last layer.

        Args:
            rows: int64 [n] indices of rows; n fits `Model.row_tile`.

        Returns:
            float32 [n, vocab_size], the same on all ranks.
        """


class Model(ABC):
    """Weights of one rank, and how to apply them.

    Attributes:
        config: shape of the whole model.
        placement: where it is computed, and with whom.
        dtype: of the weights and of the hidden states.
        device: where they are.
    """

    def __init__(self, config: ModelConfig, placement: Placement) -> None:
        self.config = config
        self.placement = placement
        self.dtype = placement.dtype
        self.device = placement.device

    @classmethod
    @abstractmethod
    def parameters(cls, config: ModelConfig, placement: Placement) -> list[Parameter]:
        """Every parameter of a rank, under the names of Hugging Face checkpoints.

        Raises:
            ConfigError: the model cannot be cut for so many ranks.
        """

    @classmethod
    @abstractmethod
    def load(
        cls, config: ModelConfig, placement: Placement, weights: Weights, on_warning: OnWarning
    ) -> Self:
        """Build the model from named tensors; see `load_parameters`."""

    @property
    @abstractmethod
    def num_heads(self) -> int:
        """Query heads that this rank computes attention for."""

    @property
    @abstractmethod
    def row_tile(self) -> RowTile:
        """Row counts of a step and of `ForwardPass.logits` are multiples of this."""

    @abstractmethod
    def new_traffic(self) -> ExpertTraffic | None:
        """Counts what passes ask of the experts; None if the model has none."""

    @abstractmethod
    def begin(
        self,
        batch: RowBatch,
        attention: Attention,
        hidden: Tensor | None = None,
        traffic: ExpertTraffic | None = None,
    ) -> ForwardPass:
        """Start a pass over rows.

        Args:
            batch: the rows.
            attention: prepared for them.
            hidden: [rows, hidden_size] where an earlier pass has brought them, which is changed in
                place; None for rows that are still to be embedded.
            traffic: counts, if anybody wants to know.
        """
