"""The two halves of a transfer. Both block, and each belongs to one transfer thread; only `abandon`
may be called from another.

What travels beside the link is the caller's: announcements from the sender to the receiver, and the
news that a unit is posted back. The halves share nothing but the manifest and the link.

A transfer that fails anywhere has failed altogether: the link is closed, which makes the receiver's
blocks quiet, and nothing that arrived may be used. Only a transfer that is complete at both ends
leaves a link that may be used again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from twinflow.parallel.links.digest import page_digests
from twinflow.parallel.links.link import Link, PendingReceive
from twinflow.parallel.links.manifest import (
    TransferLedger,
    TransferManifest,
    Unit,
    UnitAnnouncement,
)
from twinflow.protos.errors import HandoffError

# The memory of some layers of a part of a block: pages(block of the sequence, first layer, layers,
# part of the manifest's layout).
Pages = Callable[[int, int, int, int], torch.Tensor]


class UnitSender:
    """Sends the units of one transfer. After an error the caller closes the link.

    Args:
        link: an open link that no other transfer uses.
        manifest: what the receiver expects.
        pages: where the blocks are.

    Raises:
        LinkError: the link is not usable.
    """

    def __init__(self, link: Link, manifest: TransferManifest, pages: Pages) -> None:
        self._link = link
        self._manifest = manifest
        self._pages = pages
        self._ledger = TransferLedger(manifest)
        self._first_tag = link.reserve_tags(manifest.num_messages)

    @property
    def complete(self) -> bool:
        """Whether the receiver has received everything."""
        return self._ledger.complete

    def announce(self, unit: Unit) -> UnitAnnouncement:
        """Describe a unit that is computed; its pages must not change any more.

        Raises:
            HandoffError: the unit is not part of the transfer, or was announced before.
        """
        pages = self._unit_pages(unit)
        digests = page_digests(pages, self._manifest.seeds(unit))
        self._ledger.admit(unit)
        return UnitAnnouncement(unit, self._manifest.message_bytes(unit), tuple(digests))

    def send(self, index: int, deadline_s: float | None = None) -> None:
        """Send an announced unit that the receiver has posted; blocks until it was received.

        Units are sent in the order in which the receiver finishes them.

        Args:
            index: of the unit.
            deadline_s: seconds it may take; the link's deadline if None.

        Raises:
            LinkError: the link broke.
            HandoffError: the unit is not announced, was sent, or its pages have another size now.
        """
        unit = self._ledger.promised(index)
        first_tag = self._first_tag + self._manifest.first_cell(unit)
        self._link.send(self._unit_pages(unit), first_tag, deadline_s)
        self._ledger.record(index)

    def check_integrity(self) -> None:
        """Recount what was announced and sent.

        Raises:
            RuntimeError: the counts disagree.
        """
        self._ledger.check_integrity()

    def _unit_pages(self, unit: Unit) -> list[torch.Tensor]:
        return unit_pages(self._manifest, self._pages, unit)


@dataclass(frozen=True, slots=True)
class _PostedUnit:
    pending: PendingReceive
    pages: list[torch.Tensor]
    digests: tuple[int, ...]


class UnitReceiver:
    """Receives the units of one transfer into blocks that nobody else uses meanwhile.

    Args:
        link: an open link that no other transfer uses.
        manifest: what this end has room for.
        pages: where the blocks go.

    Raises:
        LinkError: the link is not usable.
    """

    def __init__(self, link: Link, manifest: TransferManifest, pages: Pages) -> None:
        self._link = link
        self._manifest = manifest
        self._pages = pages
        self._ledger = TransferLedger(manifest)
        self._posted: dict[int, _PostedUnit] = {}
        self._first_tag = link.reserve_tags(manifest.num_messages)
        self._failure: HandoffError | None = None
        self._digests_refused = 0

    @property
    def complete(self) -> bool:
        """Whether every block has arrived and matched its digest: they may be used."""
        return self._failure is None and self._ledger.complete

    @property
    def failed(self) -> bool:
        """Whether the transfer failed: nothing of it may be used."""
        return self._failure is not None

    @property
    def failure(self) -> HandoffError | None:
        """Why it failed; known before the link is closed for it."""
        return self._failure

    @property
    def digests_refused(self) -> int:
        """Pages that arrived with a wrong digest."""
        return self._digests_refused

    def post(self, announcement: UnitAnnouncement) -> None:
        """Check a promised unit and let the sender send it. Does not block.

        Raises:
            HandoffError: the unit is not what the manifest allows; the transfer has failed.
            LinkError: the link broke; the transfer has failed.
        """
        unit = announcement.unit
        self._require_sound()
        try:
            self._manifest.check_unit(unit, announcement.bytes_per_block, len(announcement.digests))
            self._ledger.admit(unit)
            pages = unit_pages(self._manifest, self._pages, unit)
            first_tag = self._first_tag + self._manifest.first_cell(unit)
            pending = self._link.post_receive(pages, first_tag)
        except HandoffError as error:
            self.abandon(error)
            raise
        self._posted[unit.index] = _PostedUnit(pending, pages, announcement.digests)

    def finish(self, index: int, deadline_s: float | None = None) -> None:
        """Wait for a posted unit and verify it. Units are finished in the order they were posted.

        Args:
            index: of the unit.
            deadline_s: seconds it may take; the link's deadline if None.

        Raises:
            HandoffError: a page is not the promised one; the transfer has failed.
            LinkError: the link broke; the transfer has failed.
        """
        self._require_sound()
        try:
            unit = self._ledger.promised(index)
            posted = self._posted.pop(index)
            posted.pending.wait(deadline_s)
            self._verify(unit, posted)
            self._ledger.record(index)
        except HandoffError as error:
            self.abandon(error)
            raise

    def abandon(self, reason: HandoffError) -> None:
        """Give the transfer up: closes the link, so that no late byte reaches the blocks.

        Wakes `finish`. The first reason counts.
        """
        if self._failure is None:
            self._failure = reason
        self._link.close()

    def check_integrity(self) -> None:
        """Recount what was posted and received.

        Raises:
            RuntimeError: the counts disagree, or a failed transfer can still be written to.
        """
        self._ledger.check_integrity()
        if self._failure is not None and not self._link.closed:
            raise RuntimeError("a failed transfer can still be written to")

    def _verify(self, unit: Unit, posted: "_PostedUnit") -> None:
        found = page_digests(posted.pages, self._manifest.seeds(unit))
        pairs = zip(unit.blocks, posted.digests, found, strict=True)
        wrong = [block for block, promised, digest in pairs if promised != digest]
        if wrong:
            self._digests_refused += len(wrong)
            raise self._manifest.error(
                f"unit {unit.index} has wrong digests for {len(wrong)} of {unit.num_blocks} "
                f"blocks, block {wrong[0]} first"
            )

    def _require_sound(self) -> None:
        if self._failure is not None:
            raise self._manifest.error(f"failed before: {self._failure}")


def unit_pages(manifest: TransferManifest, pages: Pages, unit: Unit) -> list[torch.Tensor]:
    """The memory of a unit, a tensor per block, each exactly of the agreed size.

    Raises:
        HandoffError: the unit is not part of the transfer, or `pages` gave something else than the
            layout says. Nothing was posted: gloo would abort the receiving process.
    """
    size = manifest.message_bytes(unit)
    manifest.check_unit(unit, size, unit.num_blocks)
    found = [pages(block, unit.first_layer, unit.num_layers, unit.part) for block in unit.blocks]
    for block, page in zip(unit.blocks, found, strict=True):
        if page.nbytes != size or not page.is_contiguous():
            raise manifest.error(
                f"unit {unit.index}: the page of block {block} has {page.nbytes} bytes in shape "
                f"{tuple(page.shape)}, the layout makes it {size} in one piece"
            )
    return found
