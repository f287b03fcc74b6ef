"""What a runner asks of a model.

A model holds weights. A forward pass holds what belongs to the rows of one step: it can be driven
layer by layer, so that others can work between the layers. Neither knows requests or blocks.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from twinflow.runtime.attention.base import Attention
from twinflow.runtime.models.config import ModelConfig
from twinflow.runtime.row_tile import RowTile


@dataclass(frozen=True, slots=True)
class RowBatch:
    """The rows of one step as a model sees them.

    Attributes:
        token_ids: int64 [rows].
        positions: int64 [rows], each row's position in its sequence.
        end_position: more than any position.
    """

    token_ids: Tensor
    positions: Tensor
    end_position: int


class ForwardPass(ABC):
    """The rows of one step on their way through the layers."""

    @abstractmethod
    def run_layers(self, first: int, end: int) -> None:
        """Take the rows through layers [first, end), which follow on those already run. When it
        returns, the keys and values of these layers are written."""

    @abstractmethod
    def logits(self, rows: Tensor) -> Tensor:
        """Logits of some rows, after the last layer.

        Args:
            rows: int64 [n] indices of rows; n fits `Model.row_tile`.

        Returns:
            float32 [n, vocab_size].
        """


class Model(ABC):
    """Weights, and how to apply them.

    Attributes:
        config: shape of the model.
        dtype: of the weights and of the hidden states.
        device: where they are.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device

    @property
    @abstractmethod
    def row_tile(self) -> RowTile:
        """Row counts of a step and of `ForwardPass.logits` are multiples of this."""

    @abstractmethod
    def begin(self, batch: RowBatch, attention: Attention) -> ForwardPass:
        """Embed rows; `attention` is prepared for them."""
