"""A real process at the other end of a link, told what to do over its standard input.

`python -m tests.support.link_peers STORE_PORT` reads one JSON command per line and writes one JSON
answer per line. `PeerProcess` is the driving side.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from tests.support.child_processes import ChildProcess
from tests.support.kv_pages import SMALL_LAYER_BYTES, pages_of, random_cache
from tests.support.link_store import RemoteStore

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.kv_part import KVPart
from twinflow.parallel.links.config import LinkConfig, LinkPeer
from twinflow.parallel.links.link import Link, PendingReceive
from twinflow.parallel.links.manifest import TransferManifest, Unit, UnitAnnouncement
from twinflow.parallel.links.transfer import UnitSender
from twinflow.protos.errors import TwinflowError

TESTER = LinkPeer("tester", 1)
PEER = LinkPeer("peer", 1)


class PeerError(Exception):
    """The command raised an error of twinflow; the message starts with its class."""


class PeerProcess(ChildProcess):
    """Starts a peer and talks to it."""

    def __init__(self, store_port: int) -> None:
        super().__init__("tests.support.link_peers", store_port)

    def begin(self, command: str, **arguments: object) -> None:
        """Give a command without waiting for its answer."""
        self.tell(json.dumps({"command": command, **arguments}))

    def answer(self) -> Any:
        """The answer to the oldest command that was not answered.

        Raises:
            PeerError: the command failed.
        """
        line = self.line()
        if not line:
            raise PeerError("the peer is gone")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["value"]

    def call(self, command: str, **arguments: object) -> Any:
        """Give a command and wait for its answer."""
        self.begin(command, **arguments)
        return self.answer()


def announcement_to_json(announcement: UnitAnnouncement) -> dict[str, Any]:
    """What the control channel carries; digests as text, for they have 64 bits."""
    unit = announcement.unit
    return {
        "unit": [
            unit.index,
            unit.first_block,
            unit.num_blocks,
            unit.first_layer,
            unit.num_layers,
        ],
        "bytes_per_block": announcement.bytes_per_block,
        "digests": [str(digest) for digest in announcement.digests],
    }


def announcement_from_json(data: dict[str, Any]) -> UnitAnnouncement:
    """The inverse of `announcement_to_json`."""
    digests = tuple(int(digest) for digest in data["digests"])
    return UnitAnnouncement(Unit(*data["unit"]), data["bytes_per_block"], digests)


def manifest_to_json(manifest: TransferManifest) -> dict[str, Any]:
    """A manifest as arguments of a command."""
    layout = manifest.layout
    return {
        "transfer_id": manifest.transfer_id,
        "layout": [
            layout.num_layers,
            layout.block_size,
            layout.dtype,
            [[part.name, part.planes, part.width] for part in layout.parts],
            layout.meaning,
        ],
        "first_block": manifest.first_block,
        "num_blocks": manifest.num_blocks,
        "layers_per_unit": manifest.layers_per_unit,
    }


class _Peer:
    """The peer's state: links by id, and the transfer each of them carries."""

    def __init__(self, store_port: int) -> None:
        self._store_port = store_port
        self._links: dict[str, Link] = {}
        self._senders: dict[str, UnitSender] = {}
        self._caches: dict[str, torch.Tensor] = {}
        self._pending: dict[str, tuple[PendingReceive, list[torch.Tensor]]] = {}

    def open(self, link: str, rank: int, deadline_s: float) -> None:
        config = LinkConfig(link, 1 if rank else 0, TESTER, deadline_s=deadline_s)
        self._links[link] = Link.open(config, RemoteStore(self._store_port, link, PEER))

    def close(self, link: str) -> None:
        self._links.pop(link).close()
        self._senders.pop(link, None)
        self._pending.pop(link, None)

    def sender(self, link: str, manifest: dict[str, Any], seed: int) -> None:
        num_layers, block_size, dtype, parts, meaning = manifest["layout"]
        parts = tuple(KVPart(*part) for part in parts)
        agreed = TransferManifest(
            transfer_id=manifest["transfer_id"],
            layout=KVLayout(num_layers, block_size, dtype, parts, meaning),
            first_block=manifest["first_block"],
            num_blocks=manifest["num_blocks"],
            layers_per_unit=manifest["layers_per_unit"],
        )
        cache = random_cache(agreed.layout, agreed.num_blocks, seed)
        self._caches[link] = cache
        pages = pages_of(agreed.layout, cache, agreed.first_block)
        self._senders[link] = UnitSender(self._links[link], agreed, pages)

    def announce(self, link: str, unit: list[int]) -> dict[str, Any]:
        return announcement_to_json(self._senders[link].announce(Unit(*unit)))

    def send(self, link: str, index: int, deadline_s: float | None = None) -> bool:
        self._senders[link].send(index, deadline_s)
        return self._senders[link].complete

    def flip_bit(self, link: str, block: int, layer: int) -> None:
        page = self._caches[link][block].view(torch.uint8)
        page[layer * SMALL_LAYER_BYTES + 7] ^= 0x10

    def raw_send(self, link: str, sizes: list[int], tag: int, deadline_s: float) -> None:
        messages = [torch.full((size,), 7, dtype=torch.uint8) for size in sizes]
        self._links[link].send(messages, tag, deadline_s)

    def raw_post(self, link: str, sizes: list[int], tag: int) -> None:
        buffers = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
        self._pending[link] = (self._links[link].post_receive(buffers, tag), buffers)

    def ping(self) -> str:
        return "pong"


def _main(store_port: int) -> None:
    peer = _Peer(store_port)
    for line in sys.stdin:
        request = json.loads(line)
        command: Callable[..., Any] = getattr(peer, request.pop("command"))
        try:
            answer = {"value": command(**request)}
        except TwinflowError as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    _main(int(sys.argv[1]))
