"""The ways in which a device can be divided between a prefill lane and a decode lane.

Numbers only: who makes streams, core sets or nothing of them is somebody else's business.
"""

from dataclasses import dataclass

# Of a device: each costs contexts and workspaces on a GPU, and a trial at the start on a CPU, and
# finer ones differ by less than can be measured.
MOST_SPLITS = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """Who has which processors; a lane without any does not run.

    Attributes:
        prefill: processors of the prefill lane.
        decode: those of the decode lane.
    """

    prefill: int
    decode: int

    @property
    def prefill_share(self) -> float:
        """Of the device."""
        return self.prefill / (self.prefill + self.decode)

    @property
    def decode_share(self) -> float:
        """Of the device."""
        return self.decode / (self.prefill + self.decode)


@dataclass(frozen=True, slots=True)
class Grid:
    """The layouts of one device.

    Attributes:
        processors: streaming multiprocessors, or cores.
        splits: processors of the prefill lane in each layout with two lanes, ascending; at least
            one. What the device can do and what each lane must keep decide it: 16, 32, ... 112 of
            132 on an H100.
    """

    processors: int
    splits: tuple[int, ...]

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.splits, self.splits[1:], strict=False))
        inside = self.splits and self.splits[0] > 0 and self.splits[-1] < self.processors
        if not ascending or not inside:
            raise ValueError(
                f"splits of {self.processors} processors lie between 1 and {self.processors - 1}, "
                f"ascending, not {self.splits}"
            )

    @classmethod
    def of(cls, processors: int, alignment: int = 1, smallest: int = 1) -> "Grid":
        """The layouts of a device: as many as are worth having, at even distances.

        The one place that says so, for devices that are divided and for those that are simulated.

        Args:
            processors: that there are.
            alignment: the prefill lane's part is a multiple of it; the decode lane has the rest.
            smallest: processors that a part has at least.

        Raises:
            ValueError: there are too few processors for two lanes.
        """
        step = alignment
        while True:
            first = step * -(-smallest // step)
            splits = range(first, processors - smallest + 1, step)
            if len(splits) <= MOST_SPLITS:
                return cls(processors, tuple(splits))
            step += alignment

    @property
    def all_prefill(self) -> Layout:
        """While nothing decodes."""
        return Layout(self.processors, 0)

    @property
    def all_decode(self) -> Layout:
        """While no prompt is computed."""
        return Layout(0, self.processors)

    @property
    def middle(self) -> int:
        """Index of the split to begin with."""
        return len(self.splits) // 2

    def layout(self, index: int) -> Layout:
        """The layout of a split."""
        prefill = self.splits[index]
        return Layout(prefill, self.processors - prefill)
