"""What the machine can do at best: bytes read and products of a matrix per second.

Measured in turns with the contestants, because whoever else uses the machine slows them all; the
best of many short tries is the limit.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from twinflow.runtime.kernels.native_linear import PanelMemory

BANDWIDTH_BYTES = 256 << 20
_MATRIX = 1024
_TRIES = 8


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second of a processor core.

    Attributes:
        read_bytes: read from memory, in large pages.
        flop: of products of float32 matrices, an addition and a multiplication each.
    """

    read_bytes: float
    flop: float

    def best(self, other: "Rates") -> "Rates":
        """The higher of each."""
        return Rates(max(self.read_bytes, other.read_bytes), max(self.flop, other.flop))


class Machine:
    """Keeps the memory that is read."""

    def __init__(self, size: int = BANDWIDTH_BYTES) -> None:
        self._memory = PanelMemory().take(size).fill_(1).view(torch.float32)
        self._left, self._right = torch.rand(2, _MATRIX, _MATRIX)

    def measure(self) -> Rates:
        """One round, with one thread: the best of some tries."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            read = min(_seconds(lambda: torch.sum(self._memory)) for _ in range(_TRIES))
            multiplied = min(
                _seconds(lambda: torch.mm(self._left, self._right)) for _ in range(_TRIES)
            )
        finally:
            torch.set_num_threads(threads)
        size = self._memory.numel() * self._memory.element_size()
        return Rates(size / read, 2 * _MATRIX**3 / multiplied)


def _seconds(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start
