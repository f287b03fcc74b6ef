"""A prompt whose KV one rank of a prefill worker hands over, to as many ranks as want a share."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from twinflow.runtime.kv_progress import KVProgress


class ProgressListener(Protocol):
    """Sends what has become final."""

    def on_kv(self, progress: KVProgress) -> None:
        """Layers of some tokens are final; called on any thread, in order, and must not wait."""
        ...


def held_id(transfer_id: str) -> str:
    """What the engine calls the prompt of a hand-off."""
    return f"transfer/{transfer_id}"


class HeldPrompt:
    """What is final of a prompt, for the routes that send it, whenever they begin to.

    Args:
        transfer_id: of the hand-off.
        num_tokens: of the prompt.

    Attributes:
        transfer_id: likewise.
        num_tokens: likewise.
        blocks: the block table, as far as it was told.
        conversations: those about its KV that end before it does.
        over: no more of them may begin.
    """

    def __init__(self, transfer_id: str, num_tokens: int) -> None:
        self.transfer_id = transfer_id
        self.num_tokens = num_tokens
        self.blocks: Sequence[int] = ()
        self.conversations: set[asyncio.Task[None]] = set()
        self.over = False
        self._lock = threading.Lock()
        self._progress: list[KVProgress] = []
        self._listeners: list[ProgressListener] = []

    def on_kv(self, progress: KVProgress) -> None:
        """The engine has finished layers; called on the thread of its steps."""
        with self._lock:
            self.blocks = tuple(progress.blocks)
            self._progress.append(replace(progress, blocks=()))
            for listener in self._listeners:
                listener.on_kv(self._progress[-1])

    def attach(self, listener: ProgressListener) -> None:
        """Tell a route what is final already, and what becomes so."""
        with self._lock:
            for progress in self._progress:
                listener.on_kv(progress)
            self._listeners.append(listener)

    def detach(self, listener: ProgressListener) -> None:
        """Tell a route nothing more."""
        with self._lock:
            self._listeners.remove(listener)
