"""Takes the outputs of each engine step to whoever owns the requests.

An owner is a gateway's session or an outgoing hand-off. Nothing here waits.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from twinflow.protos.errors import TwinflowError
from twinflow.runtime.lifecycle import EngineOutputs, ReceiveOrder
from twinflow.runtime.outputs import TokenDelta


class RequestOwner(Protocol):
    """Hears what becomes of its requests; methods must not block."""

    def deliver(self, engine_id: str, delta: TokenDelta) -> None:
        """New tokens; after a delta with a finish reason nothing more comes."""
        ...

    def fail(self, engine_id: str, error: TwinflowError) -> None:
        """The request ended with an error; nothing more comes."""
        ...

    def flush(self) -> None:
        """All outputs of this step have been delivered."""
        ...


class OutputRouter:
    """Who owns which request of the engine.

    Args:
        on_receive: takes the engine's orders to receive KV.
    """

    def __init__(self, on_receive: Callable[[ReceiveOrder], None]) -> None:
        self._owners: dict[str, RequestOwner] = {}
        self._on_receive = on_receive

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, engine_id: str) -> bool:
        return engine_id in self._owners

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._owners))

    def own(self, engine_id: str, owner: RequestOwner) -> None:
        """From now on `owner` hears of the request."""
        self._owners[engine_id] = owner

    def disown(self, engine_id: str) -> None:
        """Nobody hears of the request any more."""
        self._owners.pop(engine_id, None)

    def publish(self, outputs: EngineOutputs) -> None:
        """Deliver the outputs of a step."""
        touched: set[RequestOwner] = set()
        for engine_id, delta in outputs.deltas:
            owner = self._owners.get(engine_id)
            if owner is not None:
                if delta.finish_reason is not None:
                    self.disown(engine_id)
                owner.deliver(engine_id, delta)
                touched.add(owner)
        for engine_id, error in outputs.failures:
            owner = self._owners.pop(engine_id, None)
            if owner is not None:
                owner.fail(engine_id, error)
                touched.add(owner)
        for owner in touched:
            owner.flush()
        for order in outputs.receives:
            self._on_receive(order)

    def fail(self, engine_id: str, error: TwinflowError) -> None:
        """End one request with an error."""
        self.publish(EngineOutputs(failures=[(engine_id, error)]))

    def fail_all(self, error: TwinflowError) -> None:
        """The engine is gone, and every request with it."""
        self.publish(EngineOutputs(failures=[(engine_id, error) for engine_id in self]))
