"""The rendezvous store of a link, and the directory of them."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from twinflow.parallel.links.config import LinkPeer
from twinflow.parallel.links.rendezvous import LinkStore
from twinflow.parallel.links.store import MET_KEY, MemoryStore, StoreDirectory, StoreLimits
from twinflow.protos.errors import LinkError

PEER = LinkPeer("decode-0", 5)


def test_a_waiting_get_returns_what_is_set_later() -> None:
    store = MemoryStore("a")
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(store.get, "key", 20.0)
        store.set("key", b"value")
        assert waiting.result() == b"value"
    store.check_integrity()


def test_get_gives_up_when_its_time_is_over() -> None:
    assert MemoryStore("a").get("key", 0.01) is None


def test_add_counts_from_zero_and_refuses_what_is_no_number() -> None:
    store = MemoryStore("a")
    assert [store.add("n", 2), store.add("n", -5)] == [2, -3]
    store.set("word", b"many")
    with pytest.raises(LinkError, match="'word', which holds no number"):
        store.add("word", 1)


def test_compare_set_replaces_only_what_is_expected() -> None:
    store = MemoryStore("a")
    assert store.compare_set("key", b"old", b"new") == b"old"
    assert not store.check(["key"])
    assert store.compare_set("key", b"", b"first") == b"first"
    assert store.compare_set("key", b"other", b"new") == b"first"
    assert store.compare_set("key", b"first", b"second") == b"second"
    assert store.get("key", 0.0) == b"second"


def test_bounds_hold_in_keys_and_in_bytes_and_deleting_makes_room() -> None:
    store = MemoryStore("a", StoreLimits(max_keys=2, max_bytes=20))
    store.set("k1", b"x" * 8)
    with pytest.raises(LinkError, match="link a: the rendezvous store is full"):
        store.set("k2", b"x" * 9)
    store.set("k2", b"x" * 8)
    with pytest.raises(LinkError, match="store is full"):
        store.add("k3", 1)
    store.set("k1", b"y" * 8)  # replacing needs no room
    assert store.delete("k2")
    assert not store.delete("k2")
    store.set("k3", b"")
    store.check_integrity()


def test_closing_wakes_who_waits_and_refuses_who_comes_later() -> None:
    store = MemoryStore("a")
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(store.get, "never", 20.0)
        store.close()
        with pytest.raises(LinkError, match="link a: store closed while 'never' was asked for"):
            waiting.result()
    with pytest.raises(LinkError, match="store closed"):
        store.set("key", b"")
    store.check_integrity()


def test_a_directory_drops_what_is_called_off_unless_both_ends_have_met() -> None:
    directory = StoreDirectory()
    early, late = directory.create("early", PEER), directory.create("late", PEER)
    late.set(MET_KEY, b"")
    for link_id in ("early", "late", "unknown"):
        directory.call_off(link_id)
    with pytest.raises(LinkError, match="store closed"):
        early.set(MET_KEY, b"")
    assert directory.find("late", PEER) is late
    assert len(directory) == 1
    directory.drop("late")
    with pytest.raises(LinkError, match="store closed"):
        late.set("key", b"")


def test_a_directory_lets_a_peer_come_before_the_store_is_made() -> None:
    directory = StoreDirectory()
    with ThreadPoolExecutor(1) as other:
        early = other.submit(directory.find, "a", PEER, 20.0)
        made = directory.create("a", PEER)
        assert early.result() is made
    directory.close()
    assert len(directory) == 0


def test_a_directory_keeps_links_apart() -> None:
    directory = StoreDirectory()
    directory.create("a", PEER).set("key", b"a's")
    directory.create("b", PEER)
    assert not directory.find("b", PEER).check(["key"])
    directory.drop("a")
    assert not directory.find("b", PEER).delete("key")
    directory.check_integrity()


@pytest.mark.parametrize("stranger", [LinkPeer("decode-1", 5), LinkPeer("decode-0", 4)])
def test_a_directory_shows_a_link_to_its_peer_in_its_present_life_only(stranger: LinkPeer) -> None:
    directory = StoreDirectory()
    directory.create("a", PEER)
    with pytest.raises(LinkError, match="link a is not a link of decode"):
        directory.find("a", stranger)


def test_a_directory_refuses_unknown_double_and_too_many_links() -> None:
    directory = StoreDirectory(max_links=2)
    with pytest.raises(LinkError, match=r"link a of decode-0 \(epoch 5\): no such link after 0.01"):
        directory.find("a", PEER, 0.01)
    assert len(directory) == 0  # asking leaves no trace
    directory.create("a", PEER)
    with pytest.raises(LinkError, match="the id is in use"):
        directory.create("a", PEER)
    directory.create("b", PEER)
    with pytest.raises(LinkError, match="2 links are open"):
        directory.create("c", PEER)
    directory.check_integrity()


def test_torch_sees_the_backend_through_a_link_store() -> None:
    backend = MemoryStore("a")
    store = LinkStore(backend, "link a to x", 20.0)
    store.set("key", "text")
    assert backend.get("key", 0.0) == b"text"
    assert store.get("key") == b"text"
    assert store.add("n", 3) == 3
    assert store.compare_set("key", "text", "more") == b"more"
    assert store.check(["key", "n"])
    assert store.delete_key("n")
    assert not store.check(["key", "n"])


def test_every_wait_of_a_link_store_ends_and_names_link_peer_and_key() -> None:
    store = LinkStore(MemoryStore("a"), "link a to x", 20.0)
    message = "link a to x: no value for rendezvous key 'nothing' within 0.01 s"
    with pytest.raises(LinkError, match=message):
        store.wait(["nothing"], timedelta(milliseconds=10))
    store.set_timeout(timedelta(0))  # torch's way of saying no limit
    store.set_timeout(timedelta(milliseconds=10))
    store.set_timeout(timedelta(hours=1))  # never longer than before
    with pytest.raises(LinkError, match=message):
        store.get("nothing")
