"""Linear layers with their weights in panels; `cpp/linear.cpp` computes them.

Sums are float32. A weight stays in the dtype in which it was loaded: bfloat16 takes half of the
memory, and half of the time where reading the weights is what takes time.
"""

import mmap

import torch
import torch.nn.functional as F
from torch import Tensor

from twinflow.runtime.kernels.library import KernelLibrary, LinearLayer
from twinflow.runtime.models.linear import Linear

# Outputs of a panel.
_PANEL = 32
_ALIGNMENT = 64
_CHUNK_BYTES = 64 << 20


def panel_bytes(out_features: int, in_features: int, dtype: torch.dtype) -> int:
    """What the panels of a weight take up; the last one is filled up with zeros."""
    return -(-out_features // _PANEL) * _PANEL * in_features * dtype.itemsize


class PanelMemory:
    """Memory for panels: in large pieces, so that the system can use large pages for them.

    With pages of 4 KiB it takes a third longer to read weights.
    """

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> Tensor:
        """uint8 [size], aligned to a cache line; lives as long as whoever holds it."""
        if size > len(self._chunk):
            self._chunk = _allocate(max(size, _CHUNK_BYTES))
        taken = self._chunk[:size]
        self._chunk = self._chunk[-(-size // _ALIGNMENT) * _ALIGNMENT :]
        return taken


def _allocate(size: int) -> Tensor:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


class NativeForm:
    """Makes linear layers whose panels share memory.

    Args:
        library: the compiled kernels.
    """

    def __init__(self, library: KernelLibrary) -> None:
        self._library = library
        self._memory = PanelMemory()

    def supports(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether there is a kernel for weights of a dtype."""
        return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)

    def __call__(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """A layer with a copy of a weight [out_features, in_features]."""
        out_features, in_features = weight.shape
        panels = self._memory.take(panel_bytes(out_features, in_features, weight.dtype))
        return NativeLinear(weight, bias, self._library, panels)


class NativeLinear(Linear):
    """See the module.

    Args:
        weight: [out_features, in_features], which is copied.
        bias: [out_features], if any.
        library: the compiled kernels.
        panels: memory for the copy.

    Attributes:
        layer: what the kernels are told about it; valid as long as this lives.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, library: KernelLibrary, panels: Tensor
    ) -> None:
        super().__init__(weight, bias)
        self._dtype = torch.float32  # of the rows
        padding = -self.out_features % _PANEL
        sums = torch.zeros(self.out_features) if bias is None else bias.float()
        self._start = F.pad(sums, (0, padding))
        self._panels = panels
        self.layer = LinearLayer(
            panels=panels.data_ptr(),
            bias=self._start.data_ptr(),
            in_features=self.in_features,
            out_features=self.out_features,
            element_size=weight.itemsize,
        )
        plain = weight.contiguous()
        library.pack(self.layer, plain.data_ptr())
        self._compute = library.linear

    def __call__(self, rows: Tensor) -> Tensor:
        """See the base class."""
        if rows.dtype is not torch.float32:
            return self(rows.float()).to(rows.dtype)
        count = rows.shape[0]
        out = torch.empty((count, self.out_features))
        self._compute(self.layer, rows.data_ptr(), count, out.data_ptr())
        return out
