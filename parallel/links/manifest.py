"""What a transfer consists of, and the ledger of what has been promised and what has arrived.

A transfer moves `num_blocks` blocks of one sequence from `first_block` on: all of them, or every
n-th if n ranks of the receiver share the blocks. Its layers are cut into layer units of
`layers_per_unit` (the last may be smaller). A *cell* is one layer unit of one part of one block
(see `kv_layout`), and travels as one message:

                          block 4   block 5   block 6
    part 0, layers 0-4      #         #         .        # a unit: blocks 4 and 5 of layers 0-4
    part 0, layers 5-9      .         .         .        . other cells
    part 1, layers 0-4      .         .         .

A unit is any run of blocks of one layer unit of a part; the sender chooses the runs and their
order. Nothing here holds tensors: block numbers count blocks of the sequence and say nothing of
any cache.
"""

from dataclasses import dataclass
from enum import IntEnum

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.links.digest import page_seed
from twinflow.parallel.links.groups.base import MESSAGE_TAGS
from twinflow.protos.errors import HandoffError

# Below this, the fixed cost of a message outweighs that of its bytes (gloo, loopback).
MIN_MESSAGE_BYTES = 128 * 1024

_LONGEST_ID = 128


@dataclass(frozen=True, slots=True)
class Unit:
    """One layer unit of a part of a run of blocks.

    Attributes:
        index: number of the unit, unique in its transfer.
        first_block: first block, counted in blocks of the sequence.
        num_blocks: blocks, one message each.
        first_layer: first layer.
        num_layers: layers.
        part: which part of the manifest's layout.
        block_step: from one block to the next.
    """

    index: int
    first_block: int
    num_blocks: int
    first_layer: int
    num_layers: int
    part: int = 0
    block_step: int = 1

    @property
    def blocks(self) -> range:
        """The block numbers."""
        end = self.first_block + self.num_blocks * self.block_step
        return range(self.first_block, end, self.block_step)


@dataclass(frozen=True, slots=True)
class UnitAnnouncement:
    """What the sender promises before it sends a unit.

    Attributes:
        unit: what will be sent.
        bytes_per_block: size of each of its messages.
        digests: digest of each message, in the order of the blocks.
    """

    unit: Unit
    bytes_per_block: int
    digests: tuple[int, ...]


def layer_units(num_layers: int, layers_per_unit: int) -> list[tuple[int, int]]:
    """Cut layers into units; returns (first layer, number of layers) of each.

    Raises:
        ValueError: a count is not positive.
    """
    if num_layers < 1 or layers_per_unit < 1:
        raise ValueError(f"{num_layers} layers in units of {layers_per_unit}")
    return [
        (first, min(layers_per_unit, num_layers - first))
        for first in range(0, num_layers, layers_per_unit)
    ]


def choose_layers_per_unit(layout: KVLayout, min_message_bytes: int = MIN_MESSAGE_BYTES) -> int:
    """Layers per unit: as few as give messages of `min_message_bytes`, in units of even size.

    The messages are those of the largest part.

    Few layers let the transfer overlap with the computation of the next ones. With at least two
    layers there are at least two units, even if the messages are smaller for it.
    """
    layer_bytes = max(map(layout.layer_bytes, range(len(layout.parts))))
    enough = -(-min_message_bytes // layer_bytes)
    at_most = max(1, -(-layout.num_layers // 2))
    units = -(-layout.num_layers // min(enough, at_most))
    return -(-layout.num_layers // units)


@dataclass(frozen=True, slots=True)
class TransferManifest:
    """What both ends of a transfer agree on before the first byte.

    Attributes:
        transfer_id: made by the receiver's worker, never used twice.
        layout: the parts that are transferred; the same at both ends.
        first_block: first block of the sequence that is transferred.
        num_blocks: number of blocks, at least 1.
        layers_per_unit: layers of a layer unit.
        block_step: from one block to the next.

    Raises:
        HandoffError: a value makes no transfer, which is the fault of whoever proposed it.
    """

    transfer_id: str
    layout: KVLayout
    first_block: int
    num_blocks: int
    layers_per_unit: int
    block_step: int = 1

    def __post_init__(self) -> None:
        if not 0 < len(self.transfer_id) <= _LONGEST_ID:
            raise HandoffError(f"a transfer id has 1 to {_LONGEST_ID} characters")
        if self.first_block < 0 or self.num_blocks < 1 or self.block_step < 1:
            raise self.error(
                f"blocks {self.first_block} + {self.num_blocks} by {self.block_step} are no range"
            )
        if not 1 <= self.layers_per_unit <= self.layout.num_layers:
            raise self.error(
                f"{self.layers_per_unit} layers per unit, the model has {self.layout.num_layers}"
            )
        if self.num_messages > MESSAGE_TAGS:
            raise self.error(f"{self.num_messages} messages, {MESSAGE_TAGS} are possible")

    @property
    def blocks(self) -> range:
        """The block numbers."""
        end = self.first_block + self.num_blocks * self.block_step
        return range(self.first_block, end, self.block_step)

    @property
    def layer_units_per_block(self) -> int:
        """Layer units, and so messages, of each part of a block."""
        return -(-self.layout.num_layers // self.layers_per_unit)

    @property
    def num_messages(self) -> int:
        """Cells of the transfer; also the largest possible number of units."""
        return self.num_blocks * self.layer_units_per_block * len(self.layout.parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of all messages."""
        return self.num_blocks * self.layout.block_bytes

    def check_layout(self, kv_layout: str) -> None:
        """Compare the digest of the peer's layout with ours.

        Raises:
            HandoffError: they differ; the peer's blocks mean something else.
        """
        if kv_layout != self.layout.digest():
            parts = ", ".join(part.name for part in self.layout.parts)
            raise self.error(
                f"KV layout {kv_layout[:128]!r} of {parts}, ours is {self.layout.digest()!r}"
            )

    def check_unit(self, unit: Unit, bytes_per_block: int, num_digests: int) -> None:
        """Check a unit against the manifest, before anything is posted for it.

        Raises:
            HandoffError: the unit is out of range or of another size than the layout says.
        """
        if not 0 <= unit.index < self.num_messages:
            raise self.error(f"unit {unit.index}, there are at most {self.num_messages}")
        if not 0 <= unit.part < len(self.layout.parts):
            raise self.error(
                f"unit {unit.index} is of part {unit.part}, the layout has {len(self.layout.parts)}"
            )
        self._check_blocks(unit)
        self._check_layers(unit)
        if bytes_per_block != self.message_bytes(unit):
            raise self.error(
                f"unit {unit.index} has {bytes_per_block} bytes per block, the layout makes it "
                f"{self.message_bytes(unit)}"
            )
        if num_digests != unit.num_blocks:
            raise self.error(
                f"unit {unit.index} has {num_digests} digests for {unit.num_blocks} blocks"
            )

    def message_bytes(self, unit: Unit) -> int:
        """Bytes of each message of a unit."""
        return unit.num_layers * self.layout.layer_bytes(unit.part)

    def first_cell(self, unit: Unit) -> int:
        """Number of a unit's first cell; those of its other blocks follow it."""
        row = unit.part * self.layer_units_per_block + unit.first_layer // self.layers_per_unit
        return row * self.num_blocks + self.blocks.index(unit.first_block)

    def seeds(self, unit: Unit) -> list[int]:
        """Seed of the digest of each message of a unit."""
        part = self.layout.parts[unit.part].name
        return [
            page_seed(self.transfer_id, part, block, unit.first_layer, unit.num_layers)
            for block in unit.blocks
        ]

    def error(self, message: str) -> HandoffError:
        """An error about this transfer."""
        return HandoffError(f"transfer {self.transfer_id}: {message}")

    def _check_blocks(self, unit: Unit) -> None:
        fits = unit.num_blocks > 0 and unit.block_step == self.block_step
        if not fits or unit.blocks[0] not in self.blocks or unit.blocks[-1] not in self.blocks:
            raise self.error(
                f"unit {unit.index} has blocks {unit.first_block} + {unit.num_blocks}, the "
                f"transfer has {self.first_block} + {self.num_blocks} by {self.block_step}"
            )

    def _check_layers(self, unit: Unit) -> None:
        expected = min(self.layers_per_unit, self.layout.num_layers - unit.first_layer)
        aligned = unit.first_layer >= 0 and unit.first_layer % self.layers_per_unit == 0
        if not aligned or expected < 1 or unit.num_layers != expected:
            raise self.error(
                f"unit {unit.index} has layers {unit.first_layer} + {unit.num_layers}, not a "
                f"unit of {self.layers_per_unit} of {self.layout.num_layers}"
            )


class _Cell(IntEnum):
    MISSING = 0
    PROMISED = 1
    DONE = 2


class TransferLedger:
    """Which cells of a transfer are promised and which are done. Not thread-safe.

    A unit is promised once (`admit`) and then done once (`record`); no cell belongs to two units.
    Units come in any order.
    """

    def __init__(self, manifest: TransferManifest) -> None:
        self._manifest = manifest
        self._cells = bytearray(manifest.num_messages)
        self._promised: dict[int, Unit] = {}
        self._done: set[int] = set()
        self._missing = manifest.num_messages

    @property
    def complete(self) -> bool:
        """Whether every cell is done."""
        return self._missing == 0

    @property
    def missing(self) -> int:
        """Cells that are not done."""
        return self._missing

    def admit(self, unit: Unit) -> None:
        """Promise a unit that `check_unit` has accepted.

        Raises:
            HandoffError: the unit was there before, or overlaps one that was.
        """
        if unit.index in self._promised or unit.index in self._done:
            raise self._manifest.error(f"unit {unit.index} a second time")
        for block, cell in zip(unit.blocks, self._cells_of(unit), strict=True):
            if self._cells[cell] != _Cell.MISSING:
                raise self._manifest.error(
                    f"unit {unit.index} overlaps another at block {block}, layer {unit.first_layer}"
                )
        self._promised[unit.index] = unit
        self._mark(unit, _Cell.PROMISED)

    def promised(self, index: int) -> Unit:
        """The unit that was admitted under an index and is not done.

        Raises:
            HandoffError: there is none.
        """
        if index not in self._promised:
            raise self._manifest.error(f"unit {index} is not under way")
        return self._promised[index]

    def record(self, index: int) -> None:
        """Note that an admitted unit is done.

        Raises:
            HandoffError: no such unit is under way.
        """
        unit = self.promised(index)
        del self._promised[index]
        self._done.add(index)
        self._mark(unit, _Cell.DONE)
        self._missing -= unit.num_blocks

    def check_integrity(self) -> None:
        """Recount the cells.

        Raises:
            RuntimeError: cells, units and counters disagree.
        """
        under_way = sum(unit.num_blocks for unit in self._promised.values())
        done = len(self._cells) - self._missing
        counted = (self._cells.count(_Cell.PROMISED), self._cells.count(_Cell.DONE))
        if counted != (under_way, done) or self._done & self._promised.keys():
            raise RuntimeError(f"{counted} cells are promised and done, not {(under_way, done)}")

    def _cells_of(self, unit: Unit) -> range:
        first = self._manifest.first_cell(unit)
        return range(first, first + unit.num_blocks)

    def _mark(self, unit: Unit, state: _Cell) -> None:
        cells = self._cells_of(unit)
        self._cells[cells.start : cells.stop] = bytes((state,)) * unit.num_blocks
