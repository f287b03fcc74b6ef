"""What an executor needs from whatever runs a model: rows in, logits out.

`ModelRunner` runs a whole model or a rank's share of it; a worker of several ranks puts something
in between that makes all of them run.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from twinflow.runtime.executor import LayersDone
from twinflow.runtime.kv.cache import KVCache
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.model_runner import SequenceRows


class DraftRunner(Protocol):
    """Computes a model that drafts; its rows always cross all layers."""

    @property
    def kv_cache(self) -> KVCache:
        """The KV blocks."""
        ...

    def forward(
        self, rows: Sequence[SequenceRows], *, groups: Sequence[range] | None = None
    ) -> Tensor:
        """See `ModelRunner.forward`."""
        ...


class Runner(Protocol):
    """Computes the rows of one step at a time."""

    @property
    def kv_cache(self) -> KVCache:
        """The KV blocks; pages may be read and written between steps."""
        ...

    def forward(
        self,
        rows: Sequence[SequenceRows],
        on_layers: LayersDone | None = None,
        layers_per_unit: int = 0,
    ) -> Tensor:
        """See `ModelRunner.forward`."""
        ...

    def take_traffic(self) -> Sequence[LayerTraffic]:
        """See `ModelRunner.take_traffic`."""
        ...

    def forget(self, sequence: str) -> bool:
        """See `ModelRunner.forget`."""
        ...
