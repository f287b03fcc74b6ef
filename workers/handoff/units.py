"""Which blocks of which layers are final, and so can be sent, as an engine computes a prompt."""

from twinflow.parallel.links.manifest import TransferManifest, Unit, layer_units
from twinflow.runtime.kv_progress import KVProgress


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
        self._sent = 0  # of the manifest's blocks; those before are announced in all layers
        self._next_index = 0

    def advance(self, progress: KVProgress) -> list[Unit]:
        """Units that have become final with this progress, those of all parts together."""
        layout = self._manifest.layout
        units: list[Unit] = []
        found = self._full(progress.token_start)
        if progress.first_layer == 0 and found > self._sent:
            for first, count in layer_units(layout.num_layers, self._manifest.layers_per_unit):
                units += self._units(found, first, count)
            self._sent = found
        done = self._full(progress.token_end)
        units += self._units(done, progress.first_layer, progress.end_layer - progress.first_layer)
        if progress.end_layer == layout.num_layers:
            self._sent = max(self._sent, done)
        return units

    def _full(self, num_tokens: int) -> int:
        """How many of the manifest's blocks are final once so many tokens are computed."""
        blocks = self._manifest.blocks
        if num_tokens >= self._num_tokens:
            return len(blocks)
        full = num_tokens // self._manifest.layout.block_size
        return len(range(blocks.start, min(full, blocks.stop), blocks.step))

    def _units(self, end: int, first_layer: int, num_layers: int) -> list[Unit]:
        """A unit for each part of the blocks before `end` that are not sent, if there are any."""
        blocks = self._manifest.blocks[self._sent : end]
        if not blocks:
            return []
        first_index = self._next_index
        self._next_index += len(self._manifest.layout.parts)
        return [
            Unit(
                first_index + part,
                blocks.start,
                len(blocks),
                first_layer,
                num_layers,
                part,
                blocks.step,
            )
            for part in range(len(self._manifest.layout.parts))
        ]
