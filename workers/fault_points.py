"""Points at which a worker's process fails if it is told to, for tests of faults.

A fault that comes from outside comes at some time; one that shall come in the middle of a hand-off
has to be asked for there. Whoever tests puts an order into a directory, a file named after process
and point (`decode-0.hand-off`); the process that gets to the point takes the order, notes when, and
does what it says. `twinflow chaos` is that tester.

Without a directory, which is how every other deployment runs, a point is a comparison with None.
"""

import os
import signal
import time
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import msgspec

from twinflow.protos.errors import HandoffError

_TAKEN = ".taken"


class Point(Enum):
    """Where a process may be told to fail; in the order in which a request gets there."""

    START_UP = "start-up"
    """It is about to load the model."""

    QUEUED = "queued"
    """A request was given to the engine."""

    PREFILL = "prefill"
    """Some layers of some of a prompt's tokens are computed, and nobody knows yet."""

    HAND_OFF = "hand-off"
    """Some blocks are about to be sent, and their receiver waits for them."""

    DECODE = "decode"
    """A token for a gateway is computed, and the gateway does not know it."""

    DRAINING = "draining"
    """It was told to take no more requests."""


class FaultOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to do.

    Attributes:
        signal: to send.
        pid: whom to send it; 0 for the process itself.
        hold_s: how long to stand still, the thread that got to the point alone.
        corrupt: flip a bit of what is about to be sent (hand-offs only).
        cut: break the link that is about to be used (hand-offs only).
        skip: times that the point is passed before.
    """

    signal: int = 0
    pid: int = 0
    hold_s: float = 0.0
    corrupt: bool = False
    cut: bool = False
    skip: int = 0


class Struck(msgspec.Struct, frozen=True):
    """That an order was carried out.

    Attributes:
        at: Unix time in seconds, just before.
    """

    at: float


class FaultPoints:
    """The points of one process.

    Args:
        directory: where orders are put; None for nowhere.
        name: of the process.
    """

    def __init__(self, directory: Path | None, name: str) -> None:
        self._paths: Mapping[Point, Path] | None = None
        if directory is not None:
            self._paths = {point: order_path(directory, name, point) for point in Point}
        self._passed: dict[Point, int] = {}

    def reach(self, point: Point) -> bool:
        """The process is at a point; returns whether what is about to be sent shall be corrupted.

        Raises:
            HandoffError: the link shall break.
        """
        if self._paths is None:
            return False
        path = self._paths[point]
        return path.exists() and self._obey(path, point)

    def _obey(self, path: Path, point: Point) -> bool:
        order = msgspec.json.decode(path.read_bytes(), type=FaultOrder)
        passed = self._passed.get(point, 0)
        if passed < order.skip:
            self._passed[point] = passed + 1
            return False
        self._passed.pop(point, None)
        _write(path.with_name(path.name + _TAKEN), msgspec.json.encode(Struck(time.time())))
        path.unlink(missing_ok=True)
        if order.signal:
            os.kill(order.pid or os.getpid(), signal.Signals(order.signal))
        if order.hold_s:
            time.sleep(order.hold_s)
        if order.cut:
            raise HandoffError(f"the link was ordered to break at the point {point.value}")
        return order.corrupt


def order_path(directory: Path, name: str, point: Point) -> Path:
    """Where the order for a process at a point is put."""
    return directory / f"{name}.{point.value}"


def give_order(directory: Path, name: str, point: Point, order: FaultOrder) -> None:
    """Let a process fail when it gets to a point."""
    path = order_path(directory, name, point)
    path.with_name(path.name + _TAKEN).unlink(missing_ok=True)
    _write(path, msgspec.json.encode(order))


def take_back(directory: Path, name: str, point: Point) -> None:
    """Withdraw an order that was not carried out."""
    order_path(directory, name, point).unlink(missing_ok=True)


def struck(directory: Path, name: str, point: Point) -> Struck | None:
    """When the latest order was carried out; None if it was not."""
    path = order_path(directory, name, point)
    try:
        return msgspec.json.decode(path.with_name(path.name + _TAKEN).read_bytes(), type=Struck)
    except FileNotFoundError:
        return None


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, for whoever reads it at the same time."""
    draft = path.with_name(path.name + ".draft")
    draft.write_bytes(data)
    draft.replace(path)
