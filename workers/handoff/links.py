"""Links to other workers: who opens which end, and what is kept for the next transfer.

The receiver names the link and asks for it in `TransferOpen`; both ends then open their half at
the same time and meet through the sender's store. Each worker keeps two pools, because it is the
first rank of the links it sends over and the second rank of those it receives over.
"""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import grpc
import torch

from twinflow.parallel.links.config import BackendName, LinkConfig, LinkPeer
from twinflow.parallel.links.link import Link
from twinflow.parallel.links.pool import LinkLease, LinkPool, PoolLimits
from twinflow.parallel.links.store import StoreDirectory
from twinflow.protos.errors import LinkError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.workers.certificates import Certificates
from twinflow.workers.config import WorkerConfig
from twinflow.workers.handoff.store_calls import RemoteStore
from twinflow.workers.mutual_tls import MutualTls
from twinflow.workers.rpc import call_metadata, open_channel
from twinflow.workers.threads import CallThreads

# It is the receiver that picks a link, so senders keep theirs longer.
_SENDER_PATIENCE = 2
_EVICTIONS_PER_IDLE_TIME = 4
# Requests that may have ended while their links are still parting, however few the seats.
_PARTING = 8

_SENDER_RANK: Literal[0] = 0
_RECEIVER_RANK: Literal[1] = 1


def rank_name(worker_id: str, rank: int) -> str:
    """What a rank is called as the peer of a link; rank 0 is called what its worker is."""
    return f"{worker_id}/rank-{rank}" if rank else worker_id


class PeerLease:
    """A link for one hand-off, which may still have to be opened.

    Args:
        lease: of the pool.
        call_off: ends the rendezvous, if the link is being opened.
    """

    def __init__(self, lease: LinkLease, call_off: Callable[[], None]) -> None:
        self._lease = lease
        self._call_off = call_off
        self.peer = lease.peer
        self.link_id = lease.link_id
        self.reused = lease.reused

    def connect(self) -> Link:
        """The link; opens it first if it is new, which blocks.

        Raises:
            LinkError: the link could not be opened, or was given up.
        """
        return self._lease.connect()

    async def release(self) -> None:
        """Keep the link for the next hand-off: this one is complete at both ends."""
        await asyncio.to_thread(self._lease.release)

    async def discard(self) -> None:
        """Close the link. When it returns, nothing writes over it any more, and nothing will.

        A `connect` that is under way fails: at once while it looks for the peer, and when both ends
        are connected, which takes a moment, if they have met. Nobody else waits for it.
        """
        self._call_off()
        await asyncio.to_thread(self._lease.discard)


@dataclass(frozen=True, slots=True)
class _PeerChannel:
    """A control channel, and what it was opened for."""

    address: str
    certificates: Certificates | None
    channel: grpc.aio.Channel


class PeerLinks:
    """The connections of one rank to the ranks of other workers, control and data.

    Args:
        config: of the rank.
        device: where its KV blocks are, with the device's number if it has one.
        tls: certificates of control channels; None for clear text.

    Attributes:
        me: this rank, as its peers know it.
        max_sending: most links that this rank sends over.
        stores: rendezvous of these links.
        threads: where links are worked.
        metadata: of every call to a peer.
    """

    def __init__(
        self, config: WorkerConfig, device: torch.device, tls: MutualTls | None = None
    ) -> None:
        self._config = config
        self._tls = tls
        self._device = device
        self.me = LinkPeer(rank_name(config.worker_id, config.rank), config.epoch)
        self._channels: dict[str, _PeerChannel] = {}
        # Of each peer, the channel with the certificates before: what runs over it goes on.
        self._retired: dict[str, grpc.aio.Channel] = {}
        self._closing: set[asyncio.Task[None]] = set()
        # Of links that are leased and not opened yet.
        self._remote_stores: dict[str, RemoteStore] = {}
        self._events = asyncio.get_running_loop()
        self._evictor = self._events.create_task(self._evict())
        self.metadata = call_metadata(config.token)
        # A request has at most so many links on one rank; one may bring the KV of a drafter.
        fan = max(config.kv_parts, config.tensor_parallel_size)
        fan += config.speculative_config is not None
        # A link outlives its request for the moment that the two ends need to part, which on a
        # busy machine may be longer than the next short requests take.
        max_receiving = (config.max_num_seqs + max(config.max_num_seqs, _PARTING)) * fan
        # Every decode worker may have as many requests as we have.
        self.max_sending = 2 * max_receiving
        self.receiving = LinkPool(
            self._open_receiving, self._new_id, PoolLimits(max_receiving, config.link_idle_s)
        )
        self.sending = LinkPool(
            self._open_sending,
            self._new_id,
            PoolLimits(self.max_sending, _SENDER_PATIENCE * config.link_idle_s),
        )
        # A link that was given up while it was opened keeps its store until both ends know.
        self.stores = StoreDirectory(2 * self.max_sending)
        # As many as links that are leased: a hand-off whose peer waits for it never queues.
        self.threads = CallThreads("twinflow-handoff")

    def stub(self, peer: pb.Peer) -> rpc.WorkerStub:
        """The control channel to a peer; a new address, and new certificates, need a new one."""
        certificates = None if self._tls is None else self._tls.certificates
        known = self._channels.get(peer.worker_id)
        if known is None or known.address != peer.address or known.certificates is not certificates:
            if known is not None:
                self._replace(peer, known)
            channel = open_channel(peer.address, self._tls)
            known = _PeerChannel(peer.address, certificates, channel)
            self._channels[peer.worker_id] = known
        return rpc.WorkerStub(known.channel)

    def _replace(self, peer: pb.Peer, known: _PeerChannel) -> None:
        """Close a channel, or the one before it if only the certificates are new."""
        leaving: grpc.aio.Channel | None = known.channel
        if known.address == peer.address:
            leaving = self._retired.pop(peer.worker_id, None)
            self._retired[peer.worker_id] = known.channel
        if leaving is not None:
            closing = self._events.create_task(leaving.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def lease_receiving(self, peer: pb.Peer, *, fresh: bool = False) -> PeerLease:
        """A link to receive over.

        Args:
            peer: the sender.
            fresh: a new link, even if there is an idle one.

        Raises:
            LinkError: there are too many links, or a newer life of the peer was seen.
        """
        key = LinkPeer(peer.worker_id, peer.epoch)
        lease = self.receiving.lease(key, self._new_id() if fresh else None)
        if lease.reused:
            return PeerLease(lease, lambda: None)
        store = RemoteStore(lease.link_id, self.me, self.stub(peer), self.metadata, self._events)
        self._remote_stores[lease.link_id] = store

        def call_off() -> None:
            self._remote_stores.pop(lease.link_id, None)
            store.call_off()

        return PeerLease(lease, call_off)

    def lease_sending(self, opening: pb.TransferOpen) -> PeerLease:
        """The link that a receiver has named.

        Raises:
            LinkError: it cannot be leased, or the receiver means one that is not here any more.
        """
        peer, link_id = LinkPeer(opening.receiver_id, opening.receiver_epoch), opening.link_id
        if not link_id:
            raise LinkError(f"{peer} names no link: link_id is empty")
        lease = self.sending.lease(peer, link_id)
        try:
            if lease.reused == opening.new_link:
                raise LinkError(f"link {link_id} to {peer} is not here any more")
            if not lease.reused:
                self.stores.create(link_id, peer)
        except LinkError:
            lease.discard()
            raise
        return PeerLease(lease, lambda: self.stores.call_off(link_id))

    async def close(self) -> None:
        """Close all links and channels; whoever still opens a link fails."""
        self._evictor.cancel()
        self.stores.close()
        await asyncio.gather(self._evictor, return_exceptions=True)
        await asyncio.to_thread(self.receiving.close)
        await asyncio.to_thread(self.sending.close)
        await asyncio.to_thread(self.threads.shutdown)
        channels = [*(known.channel for known in self._channels.values()), *self._retired.values()]
        self._channels, self._retired = {}, {}
        await asyncio.gather(*self._closing, *(channel.close() for channel in channels))

    def check_integrity(self) -> None:
        """Recount both pools and the stores.

        Raises:
            RuntimeError: something does not add up.
        """
        self.receiving.check_integrity()
        self.sending.check_integrity()
        self.stores.check_integrity()

    async def _evict(self) -> None:
        while True:
            await asyncio.sleep(self._config.link_idle_s / _EVICTIONS_PER_IDLE_TIME)
            await asyncio.to_thread(self.receiving.evict_idle)
            await asyncio.to_thread(self.sending.evict_idle)

    def _new_id(self) -> str:
        return f"{self.me.worker_id}.{self.me.epoch}.{uuid.uuid4().hex}"

    def _open_receiving(self, peer: LinkPeer, link_id: str) -> Link:
        store = self._remote_stores.pop(link_id, None)
        if store is None:
            raise LinkError(f"link {link_id} to {peer} was given up")
        return Link.open(self._link_config(peer, link_id, _RECEIVER_RANK), store)

    def _open_sending(self, peer: LinkPeer, link_id: str) -> Link:
        store = self.stores.find(link_id, peer)
        config = self._link_config(peer, link_id, _SENDER_RANK)
        return Link.open(config, store, on_close=lambda: self.stores.drop(link_id))

    def _link_config(self, peer: LinkPeer, link_id: str, rank: Literal[0, 1]) -> LinkConfig:
        backend: BackendName = "nccl" if self._device.type == "cuda" else "gloo"
        return LinkConfig(
            link_id=link_id,
            rank=rank,
            peer=peer,
            bind_address=self._config.host,
            backend=backend,
            device=str(self._device),
            deadline_s=self._config.kv_transfer_timeout_s,
        )
