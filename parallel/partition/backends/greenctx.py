"""Two lanes of an NVIDIA GPU: each on streaming multiprocessors of its own.

    SMs      0 ........... 71 | 72 ..... 131
             prefill          | decode          layout (72, 60) of an H100

The CUDA driver splits the device once for each layout, into a group of a given size for prompts and
the remainder for decoding, and makes a green context with a stream for each of both. A lane is a
thread, and moving it is choosing another of its streams. The group can launch clusters of thread
blocks, which large matrix products like; the remainder need not be able to, and decoding has no use
for it.

Only multiprocessors are divided: not memory bandwidth, the second-level cache, copy engines or
power. Kernels that size their grid by the whole device take more waves on a part of it.
"""

from dataclasses import dataclass

from twinflow.parallel.partition.backends.base import Backend, Place
from twinflow.parallel.partition.backends.green_device import (
    CudaDriver,
    GreenDevice,
    Multiprocessors,
    SplitStreams,
)
from twinflow.parallel.partition.backends.names import GREENCTX
from twinflow.parallel.partition.control import Mode
from twinflow.parallel.partition.layout import Grid, Layout
from twinflow.protos.errors import ConfigError


@dataclass(frozen=True, slots=True)
class _Streams:
    """A lane's streams: of the whole device, and of its part by processors."""

    whole: int
    parts: dict[int, int]


class GreenContexts(Backend):
    """See the module.

    Args:
        place: a CUDA device.
        device: the driver; by default the real one.

    Raises:
        ConfigError: the driver, the device or its Python package cannot do it, or a split has
            other sizes than were asked for.
    """

    name = GREENCTX

    def __init__(self, place: Place, device: GreenDevice | None = None) -> None:
        if not place.device.startswith("cuda"):
            raise ConfigError(
                f"green contexts divide an NVIDIA GPU, and the worker computes on {place.device}"
            )
        self._device = device or CudaDriver(place.device)
        try:
            self.grid: Grid = _grid(self._device.multiprocessors())
            splits = {prefill: self._split(prefill) for prefill in self.grid.splits}
            self._streams = {
                Mode.PREFILL: self._lane({p: both.group for p, both in splits.items()}),
                Mode.DECODE: self._lane(
                    {self.grid.processors - p: both.rest for p, both in splits.items()}
                ),
            }
        except ConfigError:
            self._device.close()
            raise
        self._current: dict[Mode, int] = {}

    def enter(self, lane: Mode, layout: Layout) -> None:
        """See the base class."""
        stream = self._stream(lane, layout)
        if self._current.get(lane) != stream:
            self._device.use(stream)
            self._current[lane] = stream

    def settle(self, lane: Mode) -> None:
        """See the base class: a thread returns when its kernels are launched, not when they have
        run, and the other lane's thread takes over what this one has written."""
        self._device.wait(self._current[lane])

    def describe(self) -> str:
        """See the base class."""
        return f"{self.grid.processors} streaming multiprocessors, {len(self.grid.splits)} splits"

    def close(self) -> None:
        """See the base class."""
        self._device.close()

    def _split(self, prefill: int) -> SplitStreams:
        found, decode = self._device.split(prefill), self.grid.processors - prefill
        if (found.group_size, found.rest_size) != (prefill, decode):
            raise ConfigError(
                f"of {self.grid.processors} multiprocessors {prefill} were asked for, and the "
                f"driver made parts of {found.group_size} and {found.rest_size}"
            )
        return found

    def _lane(self, parts: dict[int, int]) -> _Streams:
        return _Streams(self._device.whole(), parts)

    def _stream(self, lane: Mode, layout: Layout) -> int:
        streams = self._streams[lane]
        own = layout.prefill if lane is Mode.PREFILL else layout.decode
        return streams.whole if own == self.grid.processors else streams.parts[own]


def _grid(found: Multiprocessors) -> Grid:
    """Splits at multiples of what the driver can cut off, with the smallest part for each lane.

    Raises:
        ConfigError: two parts are more than there is.
    """
    try:
        return Grid.of(found.count, found.alignment, found.smallest)
    except ValueError as error:
        raise ConfigError(
            f"{found.count} multiprocessors are too few for two lanes: parts are multiples of "
            f"{found.alignment} and at least {found.smallest}"
        ) from error
