"""How far the KV of requests has got that another worker waits for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twinflow.runtime.executor import LayersDone, Work


@dataclass(frozen=True, slots=True)
class KVProgress:
    """KV of a held request is final in some layers and can be sent while others are computed.

    Attributes:
        request_id: whose.
        first_layer: first layer of the range.
        end_layer: one behind the last layer.
        token_start: first token that this step computed.
        token_end: one behind the last.
        blocks: the whole block table.
    """

    request_id: str
    first_layer: int
    end_layer: int
    token_start: int
    token_end: int
    blocks: Sequence[int]


OnKV = Callable[[KVProgress], None]


def layer_listener(work: Sequence[Work], on_kv: OnKV | None) -> LayersDone | None:
    """Turns finished layers of a step into the progress of its held requests; None if nobody
    waits for any."""
    held = [item for item in work if item.request.hold]
    if on_kv is None or not held:
        return None

    def on_layers(first: int, end: int) -> None:
        for item in held:
            if not item.group.crosses(end):
                continue
            span = (item.group.token_start, item.group.token_end)
            on_kv(KVProgress(item.request.request_id, first, end, *span, item.blocks))

    return on_layers
