"""Which blocks of which layers are final, and so can be sent, as an engine computes a prompt."""

from twinflow.parallel.links.manifest import TransferManifest, Unit, layer_units
from twinflow.runtime.engine import KVProgress


class UnitPlanner:
    """Turns the engine's progress into units: which blocks became final in which layers.

    A block is sent once all its tokens are computed, or the prompt has ended in it. Blocks that
    the engine found in its prefix cache are final from the start, in all layers.

    Args:
        manifest: what is to be sent.
        num_tokens: tokens of the prompt.
    """

    def __init__(self, manifest: TransferManifest, num_tokens: int) -> None:
        self._manifest = manifest
        self._num_tokens = num_tokens
        self._next_block = manifest.first_block
        self._next_index = 0

    def advance(self, progress: KVProgress) -> list[Unit]:
        """Units that have become final with this progress, those of all parts together."""
        layout = self._manifest.layout
        units: list[Unit] = []
        found = progress.token_start // layout.block_size
        if progress.first_layer == 0 and found > self._next_block:
            for first, count in layer_units(layout.num_layers, self._manifest.layers_per_unit):
                units += self._units(found, first, count)
            self._next_block = found
        end = self._end_block(progress)
        units += self._units(end, progress.first_layer, progress.end_layer - progress.first_layer)
        if progress.end_layer == layout.num_layers:
            self._next_block = max(self._next_block, end)
        return units

    def _end_block(self, progress: KVProgress) -> int:
        """One behind the last block whose tokens are all computed."""
        last = self._manifest.first_block + self._manifest.num_blocks
        if progress.token_end >= self._num_tokens:
            return last
        return min(progress.token_end // self._manifest.layout.block_size, last)

    def _units(self, end_block: int, first_layer: int, num_layers: int) -> list[Unit]:
        """A unit for each part of blocks [next block, end_block), if there are any."""
        if end_block <= self._next_block:
            return []
        count = end_block - self._next_block
        first_index = self._next_index
        self._next_index += len(self._manifest.layout.parts)
        return [
            Unit(first_index + part, self._next_block, count, first_layer, num_layers, part)
            for part in range(len(self._manifest.layout.parts))
        ]
