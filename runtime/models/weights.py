"""From the tensors of a checkpoint to the parameters of a model.

A parameter may be several tensors of the checkpoint stacked along their first dimension: three
projections that read the same input are one matrix product. Everything that can be wrong with a
list of named tensors is found here; reading files is not done here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twinflow.protos.errors import CheckpointError

_LISTED = 5


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor of a model and where it comes from.

    Attributes:
        key: name in the model.
        parts: names in the checkpoint and rows of each, in the order in which they are stacked.
        columns: width of a row, None for a vector.
    """

    key: str
    parts: tuple[tuple[str, int], ...]
    columns: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        return self.part_shape(sum(rows for _, rows in self.parts))

    def part_shape(self, rows: int) -> tuple[int, ...]:
        """Shape of a part of so many rows."""
        return (rows,) if self.columns is None else (rows, self.columns)


def load_parameters(
    parameters: Sequence[Parameter],
    weights: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    device: torch.device,
    on_warning: Callable[[str], None],
) -> dict[str, Tensor]:
    """Copy named tensors to where they belong.

    Args:
        parameters: what the model needs.
        weights: names and tensors; each tensor may be freed once the next one is asked for.
        dtype: of the result.
        device: of the result.
        on_warning: called with one sentence if there are tensors that the model does not use.

    Returns:
        The parameters by key.

    Raises:
        CheckpointError: a tensor is missing, comes twice, or has another shape or type.
    """
    loaded: dict[str, Tensor] = {}
    slots: dict[str, Tensor] = {}
    for parameter in parameters:
        whole = torch.empty(parameter.shape, dtype=dtype, device=device)
        loaded[parameter.key] = whole
        parts = torch.split(whole, [rows for _, rows in parameter.parts])
        slots.update(zip((name for name, _ in parameter.parts), parts, strict=True))
    unused = _fill(slots, weights)
    if unused:
        on_warning(f"{len(unused)} tensors of the checkpoint are not used: {_listing(unused)}")
    return loaded


def _fill(slots: dict[str, Tensor], weights: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Copy every tensor to its slot; returns the names that have none."""
    seen: set[str] = set()
    unused: list[str] = []
    for name, tensor in weights:
        if name in seen:
            raise CheckpointError(f"tensor {name} comes twice in the checkpoint")
        seen.add(name)
        slot = slots.get(name)
        if slot is not None:
            _check(name, tensor, slot)
            slot.copy_(tensor)
        elif not name.endswith("rotary_emb.inv_freq"):  # a buffer that old checkpoints contain
            unused.append(name)
    missing = [name for name in slots if name not in seen]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(slots)} tensors are missing from the checkpoint: "
            f"{_listing(missing)}"
        )
    return unused


def _check(name: str, tensor: Tensor, slot: Tensor) -> None:
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"tensor {name}: found type {tensor.dtype}, expected a floating point type; "
            f"quantised checkpoints are not supported"
        )
    if tensor.shape != slot.shape:
        raise CheckpointError(
            f"tensor {name}: found shape {list(tensor.shape)}, expected {list(slot.shape)}"
        )


def _listing(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
