"""What computes the operations of a model's layers, and what it is called.

All kernels compute the same functions; they differ in speed, in how they round, and in the form in
which they keep weights. Which ones a model is computed with is decided once, when it is planned.
"""

from abc import ABC, abstractmethod

import torch

from twinflow.runtime.models.linear import LinearFactory


class Kernels(ABC):
    """The operations of one model."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Tells apart kernels that round differently; workers with different ones do not go on
        with each other's requests."""

    @abstractmethod
    def linears(self) -> LinearFactory:
        """A new factory of linear layers."""

    @abstractmethod
    def loads_bfloat16(self, dtype: torch.dtype) -> bool:
        """Whether matrices that a checkpoint has in bfloat16 are to be loaded so, although the
        model is computed in `dtype`."""

    @abstractmethod
    def matrix_bytes(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> int:
        """What a linear layer keeps of a weight.

        Args:
            shape: [out_features, in_features].
            dtype: in which it was loaded.
            device: where it is.
        """

    @abstractmethod
    def copies_matrices(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether a linear layer keeps its weight in a form of its own, not the one loaded."""
