"""Gives a share of a device to the thread that measures steps.

One interface for threads of a CPU and for whatever divides a device between lanes, so that shares
are measured by the same code everywhere.
"""

from typing import Protocol

import torch

from twinflow.parallel.partition.backends.base import Backend
from twinflow.parallel.partition.control import Mode
from twinflow.parallel.partition.layout import Layout


class Divider(Protocol):
    """Moves the calling thread to a share of a device; always called on the same thread."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares that there are, the whole device first, descending."""
        ...

    def use(self, share: float) -> None:
        """Compute with one of the shares from now on."""
        ...

    def settle(self) -> None:
        """Wait until everything that was handed over is computed."""
        ...

    def close(self) -> None:
        """Compute with the whole device again."""
        ...


class Undivided:
    """The whole device and nothing else; a `Divider`."""

    shares = (1.0,)

    def use(self, share: float) -> None:
        """See `Divider.use`."""

    def settle(self) -> None:
        """See `Divider.settle`: whoever takes times waits for the device."""

    def close(self) -> None:
        """See `Divider.close`."""


class Threads:
    """Half of a CPU's threads, a quarter and so on; a `Divider`.

    Args:
        threads: all of them, at least one.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.shares = tuple((threads >> power) / threads for power in range(threads.bit_length()))

    def use(self, share: float) -> None:
        """See `Divider.use`."""
        use_threads(round(self._threads * share))

    def settle(self) -> None:
        """See `Divider.settle`: a thread returns from what it computes."""

    def close(self) -> None:
        """See `Divider.close`."""
        use_threads(self._threads)


class Parts:
    """The parts that a lane backend makes for prompts; a `Divider`.

    Every other one of its splits: a curve through them says what lies in between.

    Args:
        backend: divides the device; closed with this.
        device: that computes.

    Raises:
        ValueError: the backend divides nothing.
    """

    def __init__(self, backend: Backend, device: str) -> None:
        grid = backend.grid
        if grid is None:
            raise ValueError(f"the backend {backend.name} divides nothing")
        self._backend = backend
        self._device = device
        splits = range(0, len(grid.splits), 2)
        layouts = [grid.all_prefill, *(grid.layout(index) for index in reversed(splits))]
        self._layouts: dict[float, Layout] = {each.prefill_share: each for each in layouts}
        self.shares = tuple(self._layouts)

    def use(self, share: float) -> None:
        """See `Divider.use`."""
        self._backend.enter(Mode.PREFILL, self._layouts[share])

    def settle(self) -> None:
        """See `Divider.settle`."""
        self._backend.settle(Mode.PREFILL)

    def close(self) -> None:
        """See `Divider.close`; this thread's stream ends with the backend."""
        if self._device.startswith("cuda"):
            torch.cuda.set_stream(torch.cuda.default_stream(self._device))
        self._backend.close()


def use_threads(threads: int) -> None:
    """Compute with so many threads; 0 where nobody computes with threads of a CPU."""
    if threads:
        torch.set_num_threads(threads)
