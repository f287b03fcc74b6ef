"""From the tensors of a checkpoint to the parameters of a model on one rank.

A parameter may be several tensors of the checkpoint stacked along their first dimension: three
projections that read the same input are one matrix product. Of each tensor only the rows and
columns that belong to the rank are copied. The list of parameters is also the one place that says
which tensors a checkpoint must have (`source_shapes`).

Everything that can be wrong with a list of named tensors is found here; reading files is not done
here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.models.sharding import Cut

_LISTED = 5


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of the checkpoint and what a rank takes of it.

    Attributes:
        name: in the checkpoint.
        rows: of its first dimension; a rank that takes none still knows the tensor.
        columns: of its second dimension, None for a vector.
    """

    name: str
    rows: Cut
    columns: Cut | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the checkpoint."""
        return (self.rows.total,) if self.columns is None else (self.rows.total, self.columns.total)

    def piece(self, tensor: Tensor) -> Tensor:
        """A view of what is taken of the whole tensor."""
        rows = tensor[self.rows.start : self.rows.stop]
        return rows if self.columns is None else rows[:, self.columns.start : self.columns.stop]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor of a model on one rank and where it comes from.

    Attributes:
        key: name in the model.
        sources: in the order in which they are stacked; all take the same columns.
        padded_rows: rows of the parameter if there are more than the sources fill; the others
            are zero.
        dtype: None for that in which the model's matrices or vectors are loaded.
    """

    key: str
    sources: tuple[Source, ...]
    padded_rows: int = 0
    dtype: torch.dtype | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape on this rank."""
        rows = max(self.padded_rows, sum(source.rows.size for source in self.sources))
        columns = self.sources[0].columns
        return (rows,) if columns is None else (rows, columns.size)

    def dtype_in(self, dtype: torch.dtype, matrix_dtype: torch.dtype | None) -> torch.dtype:
        """What it is loaded in, by a model of a dtype that may load matrices in another."""
        common = dtype if matrix_dtype is None or len(self.shape) == 1 else matrix_dtype
        return self.dtype or common


def source_shapes(parameters: Iterable[Parameter]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that the checkpoint must have, by name."""
    return {source.name: source.shape for item in parameters for source in item.sources}


def load_parameters(
    parameters: Sequence[Parameter],
    weights: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    device: torch.device,
    matrix_dtype: torch.dtype | None = None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Copy this rank's share of named tensors to where it belongs.

    Args:
        parameters: what the rank needs.
        weights: names and whole tensors; each may be freed once the next one is asked for.
        dtype: of the parameters that state none.
        device: of the result.
        matrix_dtype: of those among them that are matrices; None for `dtype`.

    Returns:
        The parameters by key, and the names of tensors that are no source of any.

    Raises:
        CheckpointError: a tensor is missing, comes twice, or has another shape or type.
    """
    loaded: dict[str, Tensor] = {}
    slots: dict[str, tuple[Source, Tensor]] = {}
    for parameter in parameters:
        own_dtype = parameter.dtype_in(dtype, matrix_dtype)
        whole = torch.empty(parameter.shape, dtype=own_dtype, device=device)
        loaded[parameter.key] = whole
        start = 0
        for source in parameter.sources:
            slots[source.name] = (source, whole[start : start + source.rows.size])
            start += source.rows.size
        whole[start:].zero_()
    return loaded, _fill(slots, weights)


def _fill(
    slots: dict[str, tuple[Source, Tensor]], weights: Iterable[tuple[str, Tensor]]
) -> list[str]:
    """Copy every tensor to its slot; returns the names that have none."""
    seen: set[str] = set()
    unused: list[str] = []
    for name, tensor in weights:
        if name in seen:
            raise CheckpointError(f"tensor {name} comes twice in the checkpoint")
        seen.add(name)
        if name in slots:
            source, slot = slots[name]
            _check(source, tensor)
            slot.copy_(source.piece(tensor))
        else:
            unused.append(name)
    missing = [name for name in slots if name not in seen]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(slots)} tensors are missing from the checkpoint: "
            f"{listing(missing)}"
        )
    return unused


def _check(source: Source, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"tensor {source.name}: found type {tensor.dtype}, expected a floating point type; "
            f"quantised checkpoints are not supported"
        )
    if tensor.shape != source.shape:
        raise CheckpointError(
            f"tensor {source.name}: found shape {list(tensor.shape)}, expected {list(source.shape)}"
        )


def listing(names: list[str]) -> str:
    """The first few names and how many more there are."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
