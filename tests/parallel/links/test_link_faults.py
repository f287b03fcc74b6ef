"""Links to real processes that die, freeze, lag or lie.

The receiving end is this process: it must survive everything, lose only the link at fault, and
never see its memory change after the link was closed.
"""

import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import psutil
import pytest
import torch
from tests.support.kv_pages import SMALL_LAYOUT, pages_of, random_cache
from tests.support.link_pairs import resources
from tests.support.link_peers import (
    PEER,
    PeerError,
    PeerProcess,
    announcement_from_json,
    manifest_to_json,
)
from tests.support.link_store import StoreServer

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.links.config import LinkConfig
from twinflow.parallel.links.link import Link, PendingReceive
from twinflow.parallel.links.manifest import TransferManifest, Unit, layer_units
from twinflow.parallel.links.store import StoreDirectory
from twinflow.parallel.links.transfer import UnitReceiver
from twinflow.protos.errors import HandoffError, LinkError

pytestmark = pytest.mark.slow

# More than the kernel buffers between two sockets: freezing either end stops it half-way.
LARGE = 96 * 1024 * 1024
LONG_S = 60.0
DRAINED_S = 0.3

MANIFEST = TransferManifest("t1", SMALL_LAYOUT, first_block=2, num_blocks=8, layers_per_unit=3)
UNITS = [
    Unit(index, block, 2, layers[0], layers[1])
    for index, (block, layers) in enumerate(
        (block, layers) for block in range(2, 10, 2) for layers in layer_units(6, 3)
    )
]


class Bench:
    """This process, its rendezvous stores, and the peers that it starts."""

    def __init__(self) -> None:
        self._directory = StoreDirectory()
        self._server = StoreServer(self._directory)
        self.store_port = self._server.port
        self._peers: list[PeerProcess] = []

    def start(self, number: int) -> list[PeerProcess]:
        """Start peers at the same time, and wait until they are ready."""
        peers = [PeerProcess(self._server.port) for _ in range(number)]
        self._peers += peers
        for peer in peers:
            peer.call("ping")
        return peers

    def link(
        self,
        peer: PeerProcess,
        link_id: str,
        rank: Literal[0, 1] = 1,
        deadline_s: float = LONG_S,
    ) -> Link:
        """Connect to a peer; this end has the given rank."""
        store = self._directory.create(link_id, PEER)
        config = LinkConfig(link_id, rank, PEER, deadline_s=deadline_s)
        peer.begin("open", link=link_id, rank=1 - rank, deadline_s=LONG_S)
        link = Link.open(config, store, lambda: self._directory.drop(link_id))
        peer.answer()
        return link

    def close(self) -> None:
        """End the peers and the server."""
        for peer in self._peers:
            peer.close()
        self._server.close()
        assert len(self._directory) == 0  # every link was closed and dropped its store


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture(scope="module")
def peers(bench: Bench) -> Iterator[PeerProcess]:
    """Peers for whoever needs one of its own, started together."""
    return iter(bench.start(6))


@pytest.fixture(scope="module")
def helper(peers: Iterator[PeerProcess]) -> PeerProcess:
    """A peer that survives every test that uses it."""
    return next(peers)


@pytest.fixture(scope="module")
def sleeper(peers: Iterator[PeerProcess]) -> PeerProcess:
    """A peer that is frozen and resumed."""
    return next(peers)


@pytest.fixture
def victim(peers: Iterator[PeerProcess]) -> PeerProcess:
    """A peer that does not survive the test."""
    return next(peers)


class Transfer:
    """The receiving half here, the sending half in a peer, and the memory it arrives in."""

    def __init__(
        self,
        link: Link,
        peer: PeerProcess,
        transfer_id: str = "t1",
        seed: int = 1,
        their_layout: KVLayout = SMALL_LAYOUT,
    ) -> None:
        self._peer = peer
        self._link_id = link.link_id
        manifest = replace(MANIFEST, transfer_id=transfer_id)
        self.expected = random_cache(manifest.layout, manifest.num_blocks, seed)
        self.cache = torch.zeros_like(self.expected)
        pages = pages_of(manifest.layout, self.cache, manifest.first_block)
        self.receiver = UnitReceiver(link, manifest, pages)
        theirs = manifest_to_json(replace(manifest, layout=their_layout))
        peer.call("sender", link=link.link_id, manifest=theirs, seed=seed)

    def announce(self, unit: Unit) -> None:
        """Let the peer announce a unit, and post its receives."""
        wire = [
            unit.index,
            unit.first_block,
            unit.num_blocks,
            unit.first_layer,
            unit.num_layers,
        ]
        answer = self._peer.call("announce", link=self._link_id, unit=wire)
        self.receiver.post(announcement_from_json(answer))

    def move(self, unit: Unit) -> None:
        """A whole unit."""
        self.announce(unit)
        self._peer.begin("send", link=self._link_id, index=unit.index)
        self.receiver.finish(unit.index)
        self._peer.answer()

    def move_all(self) -> None:
        """A whole transfer."""
        for unit in UNITS:
            self.move(unit)
        assert self.receiver.complete
        assert torch.equal(self.cache, self.expected)


def test_transfers_between_processes_leave_nothing_behind(
    bench: Bench, helper: PeerProcess
) -> None:
    before, theirs = resources(), psutil.Process(helper.pid).num_fds()
    link = bench.link(helper, "reused")
    for number in range(20):
        Transfer(link, helper, f"t{number}", seed=number).move_all()
    link.close()
    helper.call("close", link="reused")
    assert resources() == before
    assert psutil.Process(helper.pid).num_fds() == theirs


def test_a_peer_killed_between_units_fails_the_transfer_at_once(
    bench: Bench, victim: PeerProcess
) -> None:
    link = bench.link(victim, "killed-between")
    transfer = Transfer(link, victim)
    transfer.move(UNITS[0])
    transfer.announce(UNITS[1])
    victim.kill()
    with pytest.raises(LinkError, match=r"receive failed: (?!not done within)"):
        transfer.receiver.finish(1)
    assert transfer.receiver.failed
    assert not transfer.receiver.complete
    transfer.receiver.check_integrity()


def freeze_inside_a_message(
    bench: Bench, peer: PeerProcess, link_id: str
) -> tuple[Link, PendingReceive, torch.Tensor]:
    """A link with a large message half across, and its sender frozen.

    The scheduler may let the whole message through before the peer is frozen; then try again.
    """
    for attempt in range(20):
        name = f"{link_id}-{attempt}"
        link = bench.link(peer, name)
        buffer = torch.zeros(LARGE, dtype=torch.uint8)
        pending = link.post_receive([buffer], 0)
        peer.begin("raw_send", link=name, sizes=[LARGE], tag=0, deadline_s=LONG_S)
        while not buffer[0]:
            pass
        peer.freeze()
        time.sleep(DRAINED_S)  # what the kernel still holds arrives without the peer
        if not buffer[-1]:
            return link, pending, buffer
        peer.thaw()
        pending.wait()
        peer.answer()
        link.close()
        peer.call("close", link=name)
    raise AssertionError("never stopped a message on its way")


def test_a_peer_killed_inside_a_message_fails_the_receive_at_once(
    bench: Bench, victim: PeerProcess
) -> None:
    link, pending, _ = freeze_inside_a_message(bench, victim, "killed-inside")
    victim.kill()
    with pytest.raises(LinkError, match=r"receive failed: (?!not done within)"):
        pending.wait()
    link.close()


def test_a_receiver_killed_inside_a_message_fails_the_send_at_once(
    bench: Bench, victim: PeerProcess
) -> None:
    link = bench.link(victim, "killed-receiver", rank=0)
    victim.call("raw_post", link="killed-receiver", sizes=[LARGE], tag=0)
    victim.freeze()
    with ThreadPoolExecutor(1) as other:
        sent = other.submit(link.send, [torch.ones(LARGE, dtype=torch.uint8)], 0)
        with pytest.raises(TimeoutError):
            sent.result(DRAINED_S)  # the kernel's buffers are full, the rest waits here
        victim.kill()
        with pytest.raises(LinkError, match=r"send failed: (?!not done within)"):
            sent.result()
    link.close()


def test_a_frozen_peer_breaks_its_own_link_and_disturbs_no_other(
    bench: Bench, helper: PeerProcess, sleeper: PeerProcess
) -> None:
    slow = bench.link(sleeper, "frozen", deadline_s=1.0)
    healthy = bench.link(helper, "healthy")
    transfer = Transfer(slow, sleeper)
    transfer.move(UNITS[0])
    transfer.announce(UNITS[1])
    sleeper.freeze()
    done = 0
    with ThreadPoolExecutor(1) as other:
        stuck = other.submit(transfer.receiver.finish, 1)
        while not stuck.done():
            Transfer(healthy, helper, f"h{done}", seed=done).move_all()
            done += 1
        with pytest.raises(LinkError, match=r"frozen to peer .*: receive failed: not done within"):
            stuck.result()
    assert done > 0
    assert transfer.receiver.failed
    transfer.receiver.check_integrity()
    Transfer(healthy, helper, "after").move_all()
    snapshot = transfer.cache.clone()
    sleeper.thaw()
    with pytest.raises(PeerError, match="LinkError"):
        sleeper.call("send", link="frozen", index=1)
    assert torch.equal(transfer.cache, snapshot)
    for peer, name in ((sleeper, "frozen"), (helper, "healthy")):
        peer.call("close", link=name)
    healthy.close()


def test_no_byte_arrives_after_a_link_was_closed(bench: Bench, sleeper: PeerProcess) -> None:
    link, pending, buffer = freeze_inside_a_message(bench, sleeper, "late")
    with pytest.raises(LinkError, match=r"receive failed: not done within 0\.1 s"):
        pending.wait(0.1)
    link.close()
    snapshot = buffer.clone()
    sleeper.thaw()
    with pytest.raises(PeerError, match="LinkError"):
        sleeper.answer()  # it went on sending, and found nobody
    assert torch.equal(buffer, snapshot)
    assert not buffer[-1]
    sleeper.call("close", link=link.link_id)


def test_a_link_closed_while_a_message_is_half_across_is_quiet(
    bench: Bench, sleeper: PeerProcess
) -> None:
    link, _, buffer = freeze_inside_a_message(bench, sleeper, "closed")
    link.close()  # nobody waited, nothing timed out
    snapshot = buffer.clone()
    sleeper.thaw()
    with pytest.raises(PeerError, match="LinkError"):
        sleeper.answer()
    assert torch.equal(buffer, snapshot)
    assert not buffer[-1]
    sleeper.call("close", link=link.link_id)


def test_an_over_long_message_is_refused_before_anything_is_posted(
    bench: Bench, helper: PeerProcess
) -> None:
    link = bench.link(helper, "over-long")
    wide = KVLayout.of_heads(num_layers=6, kv_heads=2, head_dim=16, block_size=4, dtype="float32")
    transfer = Transfer(link, helper, their_layout=wide)
    with pytest.raises(HandoffError, match="has 3072 bytes per block, the layout makes it 1536"):
        transfer.announce(UNITS[0])
    assert transfer.receiver.failed
    with pytest.raises(PeerError, match="LinkError"):
        helper.call("send", link="over-long", index=0)
    assert not transfer.cache.any()
    helper.call("close", link="over-long")


def test_what_the_agreement_on_sizes_is_for(bench: Bench, victim: PeerProcess) -> None:
    """Control: without it, an over-long message ends the receiving process."""
    link = bench.link(victim, "abort", rank=0)
    victim.call("raw_post", link="abort", sizes=[1000], tag=0)
    with pytest.raises(LinkError, match="send failed"):
        link.send([torch.ones(2000, dtype=torch.uint8)], 0)
    assert victim.wait() == -signal.SIGABRT
    link.close()


def test_strangers_at_the_data_port_change_nothing(bench: Bench, helper: PeerProcess) -> None:
    noise = random.Random(5)
    before = resources()
    link = bench.link(helper, "watched")
    ports = [
        connection.laddr
        for connection in psutil.Process(os.getpid()).net_connections()
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port != bench.store_port
    ]
    assert [port.ip for port in ports] == ["127.0.0.1"]
    strangers = []
    for length in (0, 1, 7, 8, 64, 4096):
        for _ in range(4):
            stranger = socket.create_connection((ports[0].ip, ports[0].port))
            stranger.sendall(noise.randbytes(length))
            strangers.append(stranger)
    for number in range(4):  # the numbers by which gloo's own ends name themselves
        stranger = socket.create_connection((ports[0].ip, ports[0].port))
        stranger.sendall(number.to_bytes(8, "little") + noise.randbytes(512))
        strangers.append(stranger)
    Transfer(link, helper, "watched").move_all()
    link.close()
    for stranger in strangers:
        stranger.close()
    helper.call("close", link="watched")
    assert resources() == before


def test_lies_of_a_sender_are_refused_and_the_process_survives(
    bench: Bench, helper: PeerProcess
) -> None:
    size = MANIFEST.message_bytes(UNITS[0])
    for name, sizes, deadline_s in (
        ("truncated", [size - 4, size], LONG_S),
        ("too-few", [size], 0.5),
    ):
        link = bench.link(helper, name, deadline_s=deadline_s)
        transfer = Transfer(link, helper)
        transfer.announce(UNITS[0])
        helper.begin("raw_send", link=name, sizes=sizes, tag=0, deadline_s=LONG_S)
        with pytest.raises(HandoffError, match=r"wrong digests|not done within"):
            transfer.receiver.finish(0)
        assert transfer.receiver.failed
        transfer.receiver.check_integrity()
        if name == "truncated":
            helper.answer()
        else:
            with pytest.raises(PeerError, match="LinkError"):
                helper.answer()
        helper.call("close", link=name)


def test_a_bit_flipped_on_the_way_is_refused(bench: Bench, helper: PeerProcess) -> None:
    link = bench.link(helper, "flipped")
    transfer = Transfer(link, helper)
    transfer.move(UNITS[1])
    transfer.announce(UNITS[0])
    helper.call("flip_bit", link="flipped", block=1, layer=0)
    helper.begin("send", link="flipped", index=0)
    with pytest.raises(HandoffError, match="wrong digests for 1 of 2 blocks, block 3 first"):
        transfer.receiver.finish(0)
    helper.answer()
    assert transfer.receiver.failed
    assert not transfer.receiver.complete
    helper.call("close", link="flipped")
