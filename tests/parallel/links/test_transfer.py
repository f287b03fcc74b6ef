"""Whole transfers between two ends in one process, good ones and every kind of bad one."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from tests.support.kv_pages import (
    SMALL_LAYER_BYTES,
    SMALL_LAYOUT,
    pages_of,
    random_cache,
)
from tests.support.link_pairs import linked

from twinflow.parallel.kv_layout import KVLayout
from twinflow.parallel.links.link import Link
from twinflow.parallel.links.manifest import (
    TransferManifest,
    Unit,
    UnitAnnouncement,
    layer_units,
)
from twinflow.parallel.links.transfer import UnitReceiver, UnitSender
from twinflow.protos.errors import HandoffError, LinkError

FIRST_BLOCK = 7
MANIFEST = TransferManifest(
    "t1", SMALL_LAYOUT, first_block=FIRST_BLOCK, num_blocks=5, layers_per_unit=2
)
# Two runs of blocks, three layer units each.
RUNS = [(FIRST_BLOCK, 3), (FIRST_BLOCK + 3, 2)]
UNITS = [
    Unit(index, run[0], run[1], layers[0], layers[1])
    for index, (run, layers) in enumerate(
        (run, layers) for run in RUNS for layers in layer_units(6, 2)
    )
]


class Ends:
    """Both halves of one transfer over one link, and the memory at either end."""

    def __init__(
        self, links: tuple[Link, Link], manifest: TransferManifest = MANIFEST, seed: int = 1
    ) -> None:
        self.links = links
        self.source = random_cache(manifest.layout, manifest.num_blocks, seed)
        self.target = torch.zeros_like(self.source)
        first = manifest.first_block
        self.sender = UnitSender(links[0], manifest, pages_of(manifest.layout, self.source, first))
        self.receiver = UnitReceiver(
            links[1], manifest, pages_of(manifest.layout, self.target, first)
        )
        self._background = ThreadPoolExecutor(1)

    def transfer(self, unit: Unit) -> None:
        """One unit from announcement to ledger."""
        self.receiver.post(self.sender.announce(unit))
        sent = self._background.submit(self.sender.send, unit.index)
        self.receiver.finish(unit.index)
        sent.result()

    def send(self, index: int) -> Callable[[], None]:
        """Send in the background; the result waits for it."""
        return self._background.submit(self.sender.send, index).result

    def close(self) -> None:
        """End the background thread."""
        self._background.shutdown()


@pytest.fixture
def ends() -> Iterator[Ends]:
    with linked() as links:
        ends = Ends(links)
        yield ends
        for link in links:
            link.close()
        ends.close()
        ends.receiver.check_integrity()
        ends.sender.check_integrity()


def assert_failed(ends: Ends) -> None:
    """The transfer is lost for good, and the receiver's memory is quiet."""
    assert ends.receiver.failed
    assert not ends.receiver.complete
    assert ends.links[1].closed
    ends.receiver.check_integrity()
    with pytest.raises(HandoffError, match="transfer t1: failed before"):
        ends.receiver.post(ends.sender.announce(UNITS[-1]))
    with pytest.raises(HandoffError, match="transfer t1: failed before"):
        ends.receiver.finish(0)


@pytest.mark.parametrize("order", [UNITS, UNITS[::-1], UNITS[3:] + UNITS[:3]])
def test_a_transfer_arrives_whole_in_any_order(order: list[Unit], ends: Ends) -> None:
    for unit in order:
        assert not ends.receiver.complete
        ends.transfer(unit)
    assert ends.receiver.complete
    assert ends.sender.complete
    assert not ends.receiver.failed
    assert torch.equal(ends.source, ends.target)


def test_units_posted_together_are_finished_one_by_one(ends: Ends) -> None:
    for unit in UNITS:
        ends.receiver.post(ends.sender.announce(unit))
    waits = [ends.send(unit.index) for unit in UNITS]
    for unit in UNITS:
        ends.receiver.finish(unit.index)
    for wait in waits:
        wait()
    assert ends.receiver.complete
    assert torch.equal(ends.source, ends.target)


def test_one_link_carries_twenty_transfers() -> None:
    with linked() as links:
        for seed in range(20):
            ends = Ends(links, replace(MANIFEST, transfer_id=f"t{seed}"), seed)
            for unit in UNITS:
                ends.transfer(unit)
            assert ends.receiver.complete
            assert torch.equal(ends.source, ends.target)
            ends.close()
        assert links[0].reserve_tags(1) == links[1].reserve_tags(1) == 20 * MANIFEST.num_messages


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_pages_of_half_precision_travel_too(dtype: str) -> None:
    manifest = replace(MANIFEST, layout=replace(SMALL_LAYOUT, dtype=dtype))
    with linked() as links:
        ends = Ends(links, manifest)
        for unit in UNITS:
            ends.transfer(unit)
        assert torch.equal(ends.source, ends.target)
        ends.close()


def test_a_bit_flip_after_the_announcement_fails_the_transfer(ends: Ends) -> None:
    ends.transfer(UNITS[1])
    ends.receiver.post(ends.sender.announce(UNITS[0]))
    ends.source[2].view(torch.uint8)[SMALL_LAYER_BYTES + 5] ^= 0x40
    wait = ends.send(0)
    with pytest.raises(HandoffError, match="unit 0 has wrong digests for 1 of 3 blocks, block 9"):
        ends.receiver.finish(0)
    wait()
    assert ends.receiver.digests_refused == 1
    assert_failed(ends)


def test_right_pages_in_the_wrong_order_fail_the_transfer(ends: Ends) -> None:
    announcement = ends.sender.announce(UNITS[0])
    ends.receiver.post(announcement)
    ends.source[[0, 1]] = ends.source[[1, 0]]
    wait = ends.send(0)
    with pytest.raises(HandoffError, match="wrong digests for 2 of 3 blocks, block 7 first"):
        ends.receiver.finish(0)
    wait()
    assert_failed(ends)


def test_digests_of_another_transfer_fail_the_transfer(ends: Ends) -> None:
    other = UnitSender(
        ends.links[0],
        replace(MANIFEST, transfer_id="t2"),
        pages_of(SMALL_LAYOUT, ends.source, FIRST_BLOCK),
    )
    ends.sender.announce(UNITS[0])
    ends.receiver.post(other.announce(UNITS[0]))
    wait = ends.send(0)
    with pytest.raises(HandoffError, match="wrong digests for 3 of 3 blocks"):
        ends.receiver.finish(0)
    wait()
    assert_failed(ends)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: replace(a, bytes_per_block=a.bytes_per_block * 2), "bytes per block"),
        (lambda a: replace(a, bytes_per_block=a.bytes_per_block - 4), "bytes per block"),
        (lambda a: replace(a, digests=a.digests[:-1]), "2 digests for 3 blocks"),
        (lambda a: replace(a, unit=replace(a.unit, num_blocks=6)), r"blocks 7 \+ 6"),
        (lambda a: replace(a, unit=replace(a.unit, num_layers=4)), r"layers 0 \+ 4"),
        (lambda a: replace(a, unit=replace(a.unit, index=99)), "unit 99, there are at most 15"),
    ],
)
def test_an_announcement_that_differs_from_the_manifest_is_refused_before_a_receive_is_posted(
    change: Callable[[UnitAnnouncement], UnitAnnouncement], message: str, ends: Ends
) -> None:
    with pytest.raises(HandoffError, match=message):
        ends.receiver.post(change(ends.sender.announce(UNITS[0])))
    assert_failed(ends)
    with pytest.raises(LinkError):
        ends.sender.send(0)  # nobody receives, and the sender learns it
    assert not ends.target.any()


def test_a_duplicate_and_an_overlap_are_refused(ends: Ends) -> None:
    ends.transfer(UNITS[0])
    announcement = ends.sender.announce(UNITS[1])
    again = replace(announcement, unit=replace(UNITS[0], index=5))
    with pytest.raises(HandoffError, match="unit 5 overlaps another at block 7, layer 0"):
        ends.receiver.post(again)
    assert_failed(ends)


def test_the_sender_announces_and_sends_a_unit_once(ends: Ends) -> None:
    ends.transfer(UNITS[0])
    with pytest.raises(HandoffError, match="unit 0 a second time"):
        ends.sender.announce(UNITS[0])
    with pytest.raises(HandoffError, match="unit 0 is not under way"):
        ends.sender.send(0)
    with pytest.raises(HandoffError, match="unit 1 is not under way"):
        ends.sender.send(1)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_sender_refuses_pages_of_another_size_before_it_sends(layers: int) -> None:
    with linked() as links:
        cache = random_cache(SMALL_LAYOUT, 5, 1)
        honest = pages_of(SMALL_LAYOUT, cache, FIRST_BLOCK)
        sizes = iter([2] * 3 + [layers] * 3)  # right when announced, wrong when sent
        sender = UnitSender(
            links[0],
            MANIFEST,
            lambda block, first, _, part: honest(block, first, next(sizes), part),
        )
        target = pages_of(SMALL_LAYOUT, torch.zeros_like(cache), FIRST_BLOCK)
        receiver = UnitReceiver(links[1], MANIFEST, target)
        receiver.post(sender.announce(UNITS[0]))
        with pytest.raises(HandoffError, match=rf"page of block 7 has {layers * 512} bytes"):
            sender.send(0)
        assert not links[0].broken  # nothing was sent
        with pytest.raises(LinkError, match=r"receive failed: not done within 0\.05 s"):
            receiver.finish(0, 0.05)


def test_a_layout_that_differs_between_the_ends_is_refused_without_a_byte_sent() -> None:
    with linked() as links:
        small = pages_of(SMALL_LAYOUT, random_cache(SMALL_LAYOUT, 5, 1), 7)
        ours = UnitReceiver(links[1], MANIFEST, small)
        wide = KVLayout.of_heads(
            num_layers=6, kv_heads=4, head_dim=8, block_size=4, dtype="float32"
        )
        pages = pages_of(wide, random_cache(wide, 5, 1), 7)
        theirs = UnitSender(links[0], replace(MANIFEST, layout=wide), pages)
        with pytest.raises(HandoffError, match="2048 bytes per block, the layout makes it 1024"):
            ours.post(theirs.announce(UNITS[0]))


def test_a_truncated_message_fails_the_transfer(ends: Ends) -> None:
    ends.receiver.post(ends.sender.announce(UNITS[0]))
    page_bytes = MANIFEST.message_bytes(UNITS[0])
    sent = threading.Thread(
        target=ends.links[0].send,
        args=([torch.ones(page_bytes - 8, dtype=torch.uint8)] * 3, MANIFEST.first_cell(UNITS[0])),
    )
    sent.start()
    with pytest.raises(HandoffError, match="wrong digests for 3 of 3 blocks"):
        ends.receiver.finish(0)
    sent.join()
    assert_failed(ends)


def test_a_transfer_given_up_from_another_thread_wakes_finish(ends: Ends) -> None:
    ends.receiver.post(ends.sender.announce(UNITS[0]))
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(ends.receiver.finish, 0)
        ends.receiver.abandon(HandoffError("the request was aborted"))
        with pytest.raises(HandoffError):
            waiting.result()
    with pytest.raises(HandoffError, match="failed before: the request was aborted"):
        ends.receiver.finish(0)
    assert_failed(ends)
