"""What calibration knows of the latents of a layer: second moments, never the latents themselves.

Everything is stated for latents without the gain of their norm: that gain belongs to the matrices
that read them (see `basis`). All sums are float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LatentMoments:
    """Moments of one layer; C columns.

    Attributes:
        tokens: how many latents were seen.
        covariance: [C, C] of the latents, about their mean.
        queries: [C, C] second moment of the absorbed queries q W_UK, all heads added up.
        values: [C, C] Σ_h W_UV,hᵀ W_UV,h.

    Raises:
        ValueError: the shapes differ, or a moment is not finite.
    """

    tokens: int
    covariance: Tensor
    queries: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        for moment in (self.covariance, self.queries, self.values):
            if moment.shape != (self.width, self.width):
                raise ValueError(f"a moment of shape {tuple(moment.shape)} among {self.width}²")
            if not torch.isfinite(moment).all():
                raise ValueError("a moment of latents is not finite")

    @property
    def width(self) -> int:
        """C, columns of a latent."""
        return len(self.covariance)


class MomentSums:
    """Adds up the moments of one layer while a model runs.

    Args:
        width: columns of a latent.
        device: where the latents come from; results are on the CPU.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._width = width
        self._latent_rows = self._query_rows = 0
        self._sum = torch.zeros(width, dtype=torch.float64, device=device)
        self._latents = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._queries = torch.zeros_like(self._latents)

    def add_latents(self, latents: Tensor) -> None:
        """Take [tokens, C] into account."""
        rows = latents.double()
        self._latent_rows += len(rows)
        self._sum += rows.sum(0)
        self._latents += rows.mT @ rows

    def add_queries(self, queries: Tensor) -> None:
        """Take absorbed queries [tokens, heads, C] into account."""
        rows = queries.flatten(0, 1).double()
        self._query_rows += len(queries)
        self._queries += rows.mT @ rows

    def finish(self, value_matrix: Tensor) -> LatentMoments:
        """The moments so far.

        Args:
            value_matrix: [heads * value_dim, C], W_UV of all heads for latents without gain.

        Raises:
            ValueError: there were none.
        """
        if not self._latent_rows or not self._query_rows:
            raise ValueError("there are no moments of no latents")
        mean = self._sum / self._latent_rows
        values = value_matrix.double()
        return LatentMoments(
            tokens=self._latent_rows,
            covariance=(self._latents / self._latent_rows - torch.outer(mean, mean)).cpu(),
            queries=(self._queries / self._query_rows).cpu(),
            values=(values.mT @ values).cpu(),
        )
