"""What one rank of a decode worker gets in a hand-off, from as many ranks as have it.

order ──► routes, planned once for each life of a worker
            ├─ IncomingTransfer ◄── rank 0 of the prefill worker
            └─ IncomingTransfer ◄── rank 1
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from twinflow.parallel.handoff_plan import Route, plan_routes
from twinflow.protos.errors import LinkError, StaleLink
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.workers.handoff.end import HandoffEnd
from twinflow.workers.handoff.ending import all_or_none
from twinflow.workers.handoff.first_token import FirstToken
from twinflow.workers.handoff.incoming import IncomingRoute, IncomingTransfer
from twinflow.workers.handoff.links import rank_name
from twinflow.workers.handoff.orders import Fetch, Fetched


@dataclass(slots=True)
class Tally:
    """What has come of a hand-off, whether it went well or not.

    Attributes:
        num_bytes: received.
        seconds: from the first announcement to the last digest.
        digests_refused: pages that arrived with a wrong digest.
    """

    num_bytes: int = 0
    seconds: float = 0.0
    digests_refused: int = 0

    def add(self, part: "Tally | Fetched | IncomingTransfer") -> None:
        """Something that came at the same time, over one route or to one rank."""
        self.num_bytes += part.num_bytes
        self.seconds = max(self.seconds, part.seconds)
        self.digests_refused += part.digests_refused


class RankReceiver:
    """Fetches what one rank holds of the KV that other workers compute.

    Args:
        end: this rank.
    """

    def __init__(self, end: HandoffEnd) -> None:
        self._end = end
        self._plans: dict[str, tuple[int, Sequence[Route]]] = {}
        self._partings: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._partings)

    async def fetch(
        self, order: Fetch, tally: Tally, first: FirstToken | None = None
    ) -> list[IncomingTransfer]:
        """Receive everything that is this rank's.

        Args:
            order: what.
            tally: filled in.
            first: to be brought by the route from rank 0.

        Returns:
            The transfers, which are to be parted from or abandoned.

        Raises:
            StaleLink: an idle link was dead.
            TwinflowError: the hand-off failed. Either way no link writes to the blocks any more.
        """
        if not self._end.share.blocks(order.first_block, order.num_blocks):
            return []  # all blocks are those of other ranks
        return await all_or_none(
            [
                self._run(order, route, tally, first if route.source == 0 else None)
                for route in self._routes(order.peer())
            ],
            IncomingTransfer.abandon,
        )

    async def _run(
        self, order: Fetch, route: Route, tally: Tally, first: FirstToken | None
    ) -> IncomingTransfer:
        """One route; returns when everything is here."""
        sender = _rank_of(order.peer(), route.source)
        lease = self._end.links.lease_receiving(sender, fresh=order.fresh)
        incoming = IncomingRoute(order, sender, route.parts, lease)
        try:
            transfer = IncomingTransfer(self._end, incoming, first)
        except BaseException:  # whatever it is, nobody else knows the link
            await lease.discard()
            raise
        try:
            await transfer.run()
        except LinkError as error:
            if lease.reused:
                raise StaleLink(error.message) from error
            raise
        finally:
            tally.add(transfer)
        return transfer

    def part(self, transfers: Sequence[IncomingTransfer]) -> None:
        """Let the senders free their blocks; the end of that is not awaited."""
        for transfer in transfers:
            parting = asyncio.create_task(transfer.part())
            self._partings.add(parting)
            parting.add_done_callback(self._partings.discard)

    async def abandon(self, transfers: Sequence[IncomingTransfer]) -> None:
        """Close the links of transfers that went well: others of the hand-off did not."""
        for transfer in transfers:
            await transfer.abandon()

    async def close(self) -> None:
        """Wait for what `part` has begun."""
        await asyncio.gather(*self._partings, return_exceptions=True)

    def _routes(self, peer: pb.Peer) -> Sequence[Route]:
        """Where this rank's parts come from, planned once for each life of a worker."""
        epoch, routes = self._plans.get(peer.worker_id, (None, ()))
        if epoch != peer.epoch:
            held = [list(rank.parts) for rank in peer.ranks] or [self._end.parts]
            config = self._end.config
            size = config.tensor_parallel_size
            routes = plan_routes(config.rank, size, self._end.parts, held)
            self._plans[peer.worker_id] = (peer.epoch, routes)
        return routes


def _rank_of(peer: pb.Peer, rank: int) -> pb.Peer:
    """One rank of a worker, as a peer of its own."""
    address = peer.ranks[rank].address if rank else peer.address
    return pb.Peer(worker_id=rank_name(peer.worker_id, rank), epoch=peer.epoch, address=address)
