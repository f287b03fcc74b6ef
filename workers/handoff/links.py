"""Links to other workers: who opens which end, and what is kept for the next transfer.

The receiver names the link and asks for it in `TransferOpen`; both ends then open their half at
the same time and meet through the sender's store. Each worker keeps two pools, because it is the
first rank of the links it sends over and the second rank of those it receives over.
"""

import asyncio
import uuid
from concurrent.futures import Executor

import grpc

from twinflow.parallel.links.config import BackendName, LinkConfig, LinkPeer
from twinflow.parallel.links.link import Link
from twinflow.parallel.links.pool import LinkLease, LinkPool, PoolLimits
from twinflow.parallel.links.store import StoreDirectory
from twinflow.protos.errors import HandoffError
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.internal.v1 import worker_pb2_grpc as rpc
from twinflow.workers.config import WorkerConfig
from twinflow.workers.handoff.store_calls import RemoteStore
from twinflow.workers.rpc import call_metadata, open_channel

_RECEIVER_IDLE_S = 60.0
# Longer than the receiver's: it is the receiver that picks a link both still have.
_SENDER_IDLE_S = 120.0
_EVICT_INTERVAL_S = 15.0


class PeerLinks:
    """The connections of one worker to its peers, control and data.

    Args:
        config: of the worker.
        stores: rendezvous of the links that this worker sends over.
        threads: where blocking calls run.
    """

    def __init__(self, config: WorkerConfig, stores: StoreDirectory, threads: Executor) -> None:
        self._config = config
        self._stores = stores
        self._self = LinkPeer(config.worker_id, config.epoch)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._addresses: dict[LinkPeer, str] = {}
        self._events = asyncio.get_running_loop()
        self._evictor = self._events.create_task(self._evict())
        self.threads = threads
        self.metadata = call_metadata(config.token)
        self.receiving = LinkPool(
            self._open_receiving, self._new_id, PoolLimits(config.max_num_seqs, _RECEIVER_IDLE_S)
        )
        # Every decode worker may have as many requests as we have.
        self.sending = LinkPool(
            self._open_sending, self._new_id, PoolLimits(4 * config.max_num_seqs, _SENDER_IDLE_S)
        )

    def stub(self, address: str) -> rpc.WorkerStub:
        """The control channel to a peer."""
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = open_channel(address)
        return rpc.WorkerStub(channel)

    def lease_receiving(self, peer: pb.Peer) -> LinkLease:
        """A link to receive over, from a peer."""
        key = LinkPeer(peer.worker_id, peer.epoch)
        self._addresses[key] = peer.address
        return self.receiving.lease(key)

    def lease_sending(self, opening: pb.TransferOpen) -> LinkLease:
        """The link that a receiver has named.

        Raises:
            LinkError: it cannot be leased.
            HandoffError: the receiver means a link that is not here any more.
        """
        peer = LinkPeer(opening.receiver_id, opening.receiver_epoch)
        lease = self.sending.lease(peer, opening.link_id)
        if lease.reused == opening.new_link:
            lease.discard()
            raise HandoffError(f"link {opening.link_id} to {peer} is not here any more")
        return lease

    async def close(self) -> None:
        """Close all links and channels."""
        self._evictor.cancel()
        await asyncio.gather(self._evictor, return_exceptions=True)
        await asyncio.to_thread(self.receiving.close)
        await asyncio.to_thread(self.sending.close)
        channels, self._channels = self._channels, {}
        await asyncio.gather(*(channel.close() for channel in channels.values()))

    async def _evict(self) -> None:
        while True:
            await asyncio.sleep(_EVICT_INTERVAL_S)
            await asyncio.to_thread(self.receiving.evict_idle)
            await asyncio.to_thread(self.sending.evict_idle)

    def _new_id(self) -> str:
        return f"{self._config.worker_id}.{self._config.epoch}.{uuid.uuid4().hex}"

    def _open_receiving(self, peer: LinkPeer, link_id: str) -> Link:
        stub = self.stub(self._addresses[peer])
        store = RemoteStore(link_id, self._self, stub, self.metadata, self._events)
        return Link.open(self._link_config(peer, link_id, 1), store)

    def _open_sending(self, peer: LinkPeer, link_id: str) -> Link:
        store = self._stores.create(link_id, peer)
        config = self._link_config(peer, link_id, 0)
        return Link.open(config, store, on_close=lambda: self._stores.drop(link_id))

    def _link_config(self, peer: LinkPeer, link_id: str, rank: int) -> LinkConfig:
        backend: BackendName = "nccl" if self._config.device.startswith("cuda") else "gloo"
        return LinkConfig(
            link_id=link_id,
            rank=0 if rank == 0 else 1,
            peer=peer,
            bind_address=self._config.host,
            backend=backend,
            device=self._config.device,
            deadline_s=self._config.kv_transfer_timeout_s,
        )
