"""One connection: opening, messages, failing for ever, and leaving nothing behind."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest
import torch
from tests.support.link_pairs import (
    PREFILL,
    config_of,
    filled,
    linked,
    open_pair,
    resources,
)

from twinflow.parallel.links.config import LinkConfig
from twinflow.parallel.links.deadline import Deadline
from twinflow.parallel.links.groups import by_backend
from twinflow.parallel.links.groups.base import MESSAGE_TAGS
from twinflow.parallel.links.groups.gloo import GlooGroup
from twinflow.parallel.links.groups.nccl import NcclPosted
from twinflow.parallel.links.link import Link
from twinflow.parallel.links.store import MET_KEY, MemoryStore
from twinflow.protos.errors import ConfigError, LinkError


def test_messages_arrive_in_the_tensors_they_are_meant_for() -> None:
    received = filled(0, 0, 0)
    with linked() as (sender, receiver), ThreadPoolExecutor(1) as other:
        pending = receiver.post_receive(received, 40)
        sent = other.submit(sender.send, filled(1, 2, 3), 40)
        pending.wait()
        sent.result()
    assert all(map(torch.equal, received, filled(1, 2, 3)))


def test_several_receives_are_posted_at_once_and_a_link_goes_both_ways() -> None:
    first, second, back = filled(0, 0), filled(0), filled(0)
    with linked() as (sender, receiver), ThreadPoolExecutor(1) as other:
        pending = [receiver.post_receive(first, 0), receiver.post_receive(second, 2)]
        sent = [
            other.submit(sender.send, filled(1, 2), 0),
            other.submit(sender.send, filled(3), 2),
        ]
        for receive in pending:
            receive.wait()
        for send in sent:
            send.result()
        answer = other.submit(sender.receive, back, 7)
        receiver.send(filled(4), 7)
        answer.result()
    assert [tensor[0].item() for tensor in (*first, *second, *back)] == [1, 2, 3, 4]


def test_tags_are_never_given_twice() -> None:
    with linked() as (sender, _):
        assert [sender.reserve_tags(5), sender.reserve_tags(1), sender.reserve_tags(2)] == [0, 5, 6]
        with pytest.raises(LinkError, match=f"no {MESSAGE_TAGS} tags left"):
            sender.reserve_tags(MESSAGE_TAGS)
        assert sender.reserve_tags(MESSAGE_TAGS - 8) == 8
        with pytest.raises(LinkError, match="no 1 tags left, open another"):
            sender.reserve_tags(1)


def test_a_receive_that_times_out_breaks_the_link_for_ever() -> None:
    with linked() as (_, receiver):
        pending = receiver.post_receive(filled(0), 0)
        with pytest.raises(LinkError) as failure:
            pending.wait(0.05)
        assert str(failure.value) == (
            "link link-1 to prefill-0 (epoch 3): receive failed: not done within 0.05 s"
        )
        assert receiver.broken
        for call in (
            lambda: receiver.post_receive(filled(0), 1),
            lambda: receiver.send(filled(0), 1),
            lambda: receiver.reserve_tags(1),
            lambda: pending.wait(),
        ):
            with pytest.raises(LinkError, match=r"on a broken link; it broke when: .*0.05 s"):
                call()


def test_a_send_nobody_receives_times_out() -> None:
    with linked() as (sender, _):
        with pytest.raises(LinkError, match=r"send failed: not done within 0.05 s"):
            sender.send(filled(1), 0, 0.05)
        assert sender.broken


def test_closing_one_end_wakes_the_other() -> None:
    with linked() as (sender, receiver), ThreadPoolExecutor(1) as other:
        waiting = other.submit(sender.send, filled(1), 0)
        receiver.close()
        with pytest.raises(LinkError, match=r"link-1 to decode-0 .*send failed: (?!not done)"):
            waiting.result()


def test_closing_a_link_wakes_its_own_waiters_and_is_idempotent() -> None:
    with linked() as (_, receiver), ThreadPoolExecutor(1) as other:
        waiting = other.submit(receiver.post_receive(filled(0), 0).wait)
        while not receiver._in_calls:
            pass
        receiver.close()
        with pytest.raises(LinkError, match="the link was closed meanwhile"):
            waiting.result()
        receiver.close()
        with pytest.raises(LinkError, match="send on a closed link"):
            receiver.send(filled(1), 0)


@pytest.mark.parametrize(
    ("tensors", "tag", "message"),
    [
        ([], 0, "0 messages"),
        ([torch.zeros(4)], -1, "from tag -1"),
        ([torch.zeros(4)], MESSAGE_TAGS, "from tag"),
        ([torch.zeros(4, 4).t()], 0, "one piece of memory"),
        ([torch.zeros(0)], 0, "one piece of memory"),
        ([torch.zeros(4, device="meta")], 0, "gloo cannot move a meta tensor"),
    ],
)
def test_what_cannot_be_a_message_is_refused_and_breaks_nothing(
    tensors: list[torch.Tensor], tag: int, message: str
) -> None:
    with linked() as (sender, _):
        with pytest.raises(ValueError, match=message):
            sender.send(tensors, tag)
        with pytest.raises(ValueError, match=message):
            sender.post_receive(tensors, tag)
        assert not sender.broken


def test_a_link_listens_on_its_own_address_only() -> None:
    config = replace(config_of(0), bind_address="127.0.0.2")
    store = MemoryStore("link-1")
    with ThreadPoolExecutor(1) as other:
        theirs = other.submit(Link.open, replace(config_of(1), bind_address="127.0.0.3"), store)
        ours = Link.open(config, store)
    connections = psutil.Process().net_connections()
    listening = [c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN]
    ours.close()
    theirs.result().close()
    assert sorted(listening) == ["127.0.0.2", "127.0.0.3"]


def test_links_leave_nothing_behind_however_they_end() -> None:
    open_pair()[0].close()  # whatever torch starts once is started
    before = resources()
    for round_trip in range(3):
        sender, receiver = open_pair()
        assert resources().sockets == before.sockets + 4
        received = filled(0)
        if round_trip > 0:
            pending = receiver.post_receive(received, 0)
        if round_trip > 1:
            with pytest.raises(LinkError):
                pending.wait(0.01)
        sender.close()
        receiver.close()
        assert resources() == before
        sender.check_integrity()
        receiver.check_integrity()
    with pytest.raises(LinkError):
        Link.open(config_of(0, deadline_s=0.01), MemoryStore("link-1"))
    assert resources() == before


def test_a_missing_peer_is_named_and_the_store_is_given_up() -> None:
    given_up: list[str] = []
    with pytest.raises(LinkError) as failure:
        Link.open(
            config_of(1, deadline_s=0.05), MemoryStore("link-1"), lambda: given_up.append("store")
        )
    assert str(failure.value) == (
        "link link-1 to prefill-0 (epoch 3): rendezvous failed: no sign of the peer within 0.05 s"
    )
    assert given_up == ["store"]


def test_the_store_is_given_up_once_when_the_link_closes() -> None:
    given_up: list[str] = []
    store = MemoryStore("link-1")
    with ThreadPoolExecutor(1) as other:
        theirs = other.submit(Link.open, config_of(1), store)
        ours = Link.open(config_of(0), store, lambda: given_up.append("store"))
    assert given_up == []
    theirs.result().close()
    ours.close()
    ours.close()
    assert given_up == ["store"]


def met_by(backend: str) -> MemoryStore:
    """The store of a link whose second rank has met the first, and then does nothing."""
    store = MemoryStore("link-1")
    store.set("hello/1", f"twinflow-link/1 {backend}".encode())
    store.set(MET_KEY, b"")
    return store


def test_a_peer_that_vanishes_when_both_have_met_is_not_waited_for_longer_than_allowed() -> None:
    store = met_by("gloo")
    with pytest.raises(LinkError, match=r"link-1 to decode-0 .*rendezvous key '0/1' within"):
        Link.open(config_of(0, deadline_s=0.1), store)


class CalledOffStore(MemoryStore):
    """Is called off just before or just after an end has set a key."""

    def __init__(self, key: str, *, before: bool) -> None:
        super().__init__("link-1")
        self._key = key
        self._before = before

    def set(self, key: str, value: bytes) -> None:
        if self._before and key == self._key:
            self.call_off()
        super().set(key, value)
        if not self._before and key == self._key:
            self.call_off()


@pytest.mark.parametrize("key", ["hello/0", "hello/1", MET_KEY])
def test_a_rendezvous_that_is_called_off_in_time_ends_at_both_ends(key: str) -> None:
    store = CalledOffStore(key, before=True)
    with ThreadPoolExecutor(1) as other:
        theirs = other.submit(Link.open, config_of(1), store)
        with pytest.raises(LinkError, match="store closed"):
            Link.open(config_of(0), store)
        with pytest.raises(LinkError, match="store closed"):
            theirs.result()


def test_a_rendezvous_that_is_called_off_too_late_leads_to_a_link() -> None:
    """Otherwise one end would leave, and the other wait in torch for it."""
    store = CalledOffStore(MET_KEY, before=False)
    with ThreadPoolExecutor(1) as other:
        theirs = other.submit(Link.open, config_of(1), store)
        ours = Link.open(config_of(0), store)
    ours.close()
    theirs.result().close()


class ForgetfulStore(MemoryStore):
    """Loses what is said under a key."""

    def __init__(self, key: str) -> None:
        super().__init__("link-1")
        self._lost = key

    def set(self, key: str, value: bytes) -> None:
        if key != self._lost:
            super().set(key, value)


@pytest.mark.parametrize("lost", ["connected/0", "connected/1"])
def test_an_end_that_does_not_hear_that_the_other_is_connected_leaves_nothing(lost: str) -> None:
    open_pair()[0].close()  # whatever torch starts once is started
    before = resources()
    store = ForgetfulStore(lost)
    with ThreadPoolExecutor(1) as other:
        theirs = other.submit(Link.open, config_of(1, deadline_s=0.5), store)
        with pytest.raises(LinkError, match=r"no sign of the peer within 0\.5 s"):
            Link.open(config_of(0, deadline_s=0.5), store)
        if lost == "connected/1":
            theirs.result().close()  # it said so and was not heard
        else:
            with pytest.raises(LinkError, match=r"no sign of the peer within 0\.5 s"):
                theirs.result()
    del theirs
    for _ in range(500):  # the system is a moment behind with a thread that was just joined
        if resources() == before:
            break
        time.sleep(0.01)
    assert resources() == before


def test_a_peer_of_another_kind_is_refused_before_torch_sees_it() -> None:
    store = MemoryStore("link-1")
    store.set("hello/1", b"twinflow-link/1 nccl")
    with pytest.raises(LinkError, match=r"we speak 'twinflow-link/1 gloo', the peer .*nccl'"):
        Link.open(config_of(0), store)


def test_an_address_of_another_machine_is_refused() -> None:
    store = met_by("gloo")
    config = replace(config_of(0), bind_address="192.0.2.1")
    with pytest.raises(LinkError, match=r"connect failed: .*192\.0\.2\.1"):
        Link.open(config, store)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_nccl_without_cuda_says_what_is_missing() -> None:
    store = met_by("nccl")
    config = replace(config_of(0), backend="nccl", device="cuda:0")
    with pytest.raises(LinkError, match="need a CUDA build of torch and a CUDA device"):
        Link.open(config, store)


class DeviceWork:
    """An operation that is done after a number of looks, well or not."""

    def __init__(self, looks: int, error: str = "") -> None:
        self._looks = looks
        self._error = error

    def is_completed(self) -> bool:
        self._looks -= 1
        return self._looks <= 0

    def wait(self, timeout: object = None) -> bool:
        if self._error:
            raise RuntimeError(self._error)
        return True


def test_operations_of_a_device_are_polled_until_the_deadline() -> None:
    NcclPosted(DeviceWork(looks=3)).wait(Deadline.after(20))
    with pytest.raises(RuntimeError, match="did not finish in time"):
        NcclPosted(DeviceWork(looks=10**9)).wait(Deadline.after(0.01))
    with pytest.raises(RuntimeError, match="remote process exited"):
        NcclPosted(DeviceWork(looks=2, error="remote process exited")).wait(Deadline.after(20))


def test_two_groups_cannot_claim_one_backend() -> None:
    with pytest.raises(ValueError, match="two link groups claim the backend 'gloo'"):
        by_backend((GlooGroup, GlooGroup))


@pytest.mark.parametrize("address", ["", "0.0.0.0", "::", "0:0:0:0:0:0:0:0"])
def test_wildcard_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"bind_address .* means every interface"):
        LinkConfig("a", 0, PREFILL, bind_address=address)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"link_id": ""}, "link_id is empty"),
        ({"rank": 2}, "rank is 2: a link has ranks 0 and 1"),
        ({"deadline_s": 0.0}, "deadline_s is 0.0"),
        ({"deadline_s": float("nan")}, "deadline_s is nan"),
    ],
)
def test_a_config_no_link_can_be_made_with_is_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(config_of(0), **change)  # type: ignore[arg-type]
