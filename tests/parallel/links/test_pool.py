"""Links kept between transfers: reuse, bounds, epochs, and links that must not come back."""

from dataclasses import dataclass, field
from itertools import count
from typing import cast

import pytest

from twinflow.parallel.links.config import LinkPeer
from twinflow.parallel.links.link import Link
from twinflow.parallel.links.pool import LinkPool, PoolLimits
from twinflow.protos.errors import LinkError

PEER = LinkPeer("prefill-0", 1)
OTHER = LinkPeer("prefill-1", 1)


@dataclass
class FakeLink:
    """A link that is open until it is closed, and broken when a test says so."""

    peer: LinkPeer
    link_id: str
    broken: bool = False
    closed: bool = False

    def close(self) -> None:
        self.closed = True


@dataclass
class Bench:
    """A pool over fake links, with a clock that stands still."""

    limits: PoolLimits = field(default_factory=lambda: PoolLimits(max_links=3, idle_s=10.0))
    now: float = 0.0
    opened: list[FakeLink] = field(default_factory=list)
    unreachable: set[LinkPeer] = field(default_factory=set)

    def __post_init__(self) -> None:
        ids = count()
        self.pool = LinkPool(
            self._open, lambda: f"new-{next(ids)}", self.limits, clock=lambda: self.now
        )

    @property
    def num_open(self) -> int:
        return sum(not link.closed for link in self.opened)

    def use(self, peer: LinkPeer) -> FakeLink:
        """One good transfer."""
        lease = self.pool.lease(peer)
        link = lease.connect()
        lease.release()
        self.pool.check_integrity()
        return cast(FakeLink, link)

    def _open(self, peer: LinkPeer, link_id: str) -> Link:
        if peer in self.unreachable:
            raise LinkError(f"link {link_id} to {peer}: rendezvous failed")
        link = FakeLink(peer, link_id)
        self.opened.append(link)
        return cast(Link, link)


def test_transfers_one_after_another_share_a_link() -> None:
    bench = Bench()
    first = bench.use(PEER)
    again = bench.pool.lease(PEER)
    assert again.reused
    assert again.link_id == first.link_id
    assert cast(FakeLink, again.connect()) is first
    assert bench.use(OTHER) is not first
    again.release()
    assert (bench.pool.num_idle, bench.pool.num_leased, bench.num_open) == (2, 0, 2)


def test_transfers_at_the_same_time_have_links_of_their_own() -> None:
    bench = Bench()
    one, two = bench.pool.lease(PEER), bench.pool.lease(PEER)
    assert one.connect() is not two.connect()
    assert one.connect() is one.connect()
    assert not two.reused
    one.release()
    two.release()
    bench.pool.check_integrity()
    assert bench.pool.num_idle == 2


def test_the_sender_finds_the_link_that_the_receiver_names() -> None:
    bench = Bench()
    lease = bench.pool.lease(PEER, "theirs")
    link = lease.connect()
    assert link.link_id == "theirs"
    with pytest.raises(LinkError, match=r"link theirs to prefill-0 .*: a transfer uses it"):
        bench.pool.lease(PEER, "theirs")
    lease.release()
    with pytest.raises(LinkError, match="link theirs is not a link to prefill-1"):
        bench.pool.lease(OTHER, "theirs")
    again = bench.pool.lease(PEER, "theirs")
    assert again.connect() is link
    again.discard()
    bench.pool.check_integrity()


@pytest.mark.parametrize("harm", ["discard", "broken", "closed"])
def test_a_link_with_a_bad_past_does_not_come_back(harm: str) -> None:
    bench = Bench()
    lease = bench.pool.lease(PEER)
    link = cast(FakeLink, lease.connect())
    if harm == "discard":
        lease.discard()
    else:
        setattr(link, harm, True)
    lease.release()
    lease.discard()
    assert link.closed
    assert bench.use(PEER) is not link
    assert bench.num_open == 1


def test_a_lease_whose_link_cannot_be_opened_leaves_no_trace() -> None:
    bench = Bench(unreachable={PEER})
    lease = bench.pool.lease(PEER)
    with pytest.raises(LinkError, match="rendezvous failed"):
        lease.connect()
    assert bench.pool.num_leased == 1
    lease.discard()
    assert (bench.pool.num_idle, bench.pool.num_leased) == (0, 0)


def test_the_bound_evicts_the_longest_idle_link_and_then_refuses() -> None:
    bench = Bench()
    idle = [bench.use(LinkPeer(f"prefill-{i}", 1)) for i in range(3)]
    leases = [bench.pool.lease(LinkPeer("new", 1))]
    leases[0].connect()
    assert [link.closed for link in idle] == [True, False, False]
    leases += [bench.pool.lease(LinkPeer("new", 1)) for _ in range(2)]
    assert [link.closed for link in idle] == [True, True, True]
    bench.pool.check_integrity()
    with pytest.raises(LinkError, match="all 3 links are leased"):
        bench.pool.lease(PEER)
    for lease in leases:
        lease.discard()
    assert bench.num_open == 0


def test_links_idle_for_too_long_are_evicted() -> None:
    bench = Bench()
    old = bench.use(PEER)
    bench.now = 6.0
    young = bench.use(OTHER)
    bench.now = 10.0
    assert bench.pool.evict_idle() == 1
    assert (old.closed, young.closed) == (True, False)
    bench.use(OTHER)  # being used makes it young again
    bench.now = 19.9
    assert bench.pool.evict_idle() == 0
    bench.now = 20.0
    assert bench.pool.evict_idle() == 1
    assert bench.num_open == 0


def test_surplus_links_grow_old_while_one_is_used() -> None:
    bench = Bench()
    leases = [bench.pool.lease(PEER), bench.pool.lease(PEER)]
    for lease in leases:
        lease.connect()
        lease.release()
    bench.now = 9.0
    bench.use(PEER)
    bench.now = 11.0
    assert bench.pool.evict_idle() == 1
    assert bench.pool.num_idle == 1


def test_a_new_life_of_a_peer_ends_the_links_of_the_old_one() -> None:
    bench = Bench()
    idle = bench.use(PEER)
    one, two = bench.pool.lease(PEER), bench.pool.lease(PEER)
    leased = cast(FakeLink, two.connect())
    one.release()
    reborn = LinkPeer(PEER.worker_id, 2)
    fresh = bench.use(reborn)
    assert idle.closed
    assert fresh is not idle
    assert not leased.closed  # its transfer will find out
    two.release()
    assert leased.closed  # an old link never becomes idle
    bench.pool.check_integrity()
    with pytest.raises(LinkError, match=r"prefill-0 \(epoch 1\): stale epoch, 2 was seen"):
        bench.pool.lease(PEER)
    assert bench.use(reborn) is fresh


def test_closing_wakes_transfers_and_refuses_links_that_are_being_opened() -> None:
    bench = Bench()
    lease, opening = bench.pool.lease(PEER), bench.pool.lease(OTHER)
    link = cast(FakeLink, lease.connect())
    bench.pool.close()
    assert link.closed
    with pytest.raises(LinkError, match="the pool gave it up"):
        lease.connect()
    with pytest.raises(LinkError, match="given up while it was opened"):
        opening.connect()
    for ended in (lease, opening):
        ended.release()
    assert (bench.pool.num_idle, bench.pool.num_leased, bench.num_open) == (0, 0, 0)


def test_a_closed_pool_holds_nothing_and_leases_nothing() -> None:
    bench = Bench()
    bench.use(OTHER)
    lease = bench.pool.lease(PEER)
    lease.connect()
    bench.pool.close()
    bench.pool.close()
    lease.release()
    assert (bench.pool.num_idle, bench.pool.num_leased, bench.num_open) == (0, 0, 0)
    with pytest.raises(LinkError, match="the pool is closed"):
        bench.pool.lease(PEER)
