"""Memory that is used again in every step instead of being allocated.

Fresh pages are zeroed by the operating system at the first touch; for buffers of some megabytes
that costs more than the computation that fills them.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


class Workspace:
    """Buffers by name, each as large as the largest shape that was ever taken.

    Attributes:
        device: where they are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """The buffer `name` as a contiguous tensor of a shape, with whatever it contains.

        Tensors taken under the same name and dtype share memory, until a larger one is taken.
        """
        size = prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            # An ordinary tensor even in inference mode: what is computed into it may be used
            # outside of it.
            with torch.inference_mode(False):
                buffer = torch.empty(size, dtype=dtype, device=self.device)
            self._buffers[name, dtype] = buffer
        return buffer[:size].view(shape)
