"""The prompts that the engine of a prefill worker computes for others; rank 0 only."""

from typing import Protocol

from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.runtime.request import Request
from twinflow.workers.convert import request_from_pb
from twinflow.workers.core import WorkerCore
from twinflow.workers.handoff.held import held_id
from twinflow.workers.handoff.others import OtherRanks
from twinflow.workers.outputs import RequestOwner


class Prompts(Protocol):
    """Has prompts computed whose KV is handed over."""

    def request(self, opening: pb.TransferOpen) -> Request:
        """The held request for what a decode worker asks for.

        Raises:
            InvalidRequest: the prompt cannot be computed.
            ServerError: this worker takes no more requests.
        """
        ...

    def compute(self, transfer_id: str, request: Request, owner: RequestOwner) -> None:
        """Queue a prompt on all ranks; its first token, or its failure, goes to the owner."""
        ...

    async def drop(self, transfer_id: str, *, complete: bool) -> None:
        """Returns when no other rank reads the blocks any more; see `OtherRanks.drop`."""
        ...

    def free(self, transfer_id: str) -> None:
        """Give the blocks back: nothing reads them."""
        ...


class HeldPrompts:
    """Queues prompts for the engine and gives their blocks back; see `Prompts`.

    Args:
        core: the engine and its requests.
        others: the other ranks, which hand over their share.
    """

    def __init__(self, core: WorkerCore, others: OtherRanks) -> None:
        self._core = core
        self._others = others

    def request(self, opening: pb.TransferOpen) -> Request:
        """See `Prompts.request`."""
        if self._core.refusal is not None:
            raise self._core.refusal
        return request_from_pb(opening.submission, held_id(opening.transfer_id), hold=True)

    def compute(self, transfer_id: str, request: Request, owner: RequestOwner) -> None:
        """See `Prompts.compute`."""
        self._others.hold(transfer_id, request.num_tokens)
        self._core.submit(request, owner)

    async def drop(self, transfer_id: str, *, complete: bool) -> None:
        """See `Prompts.drop`."""
        await self._others.drop(transfer_id, complete=complete)

    def free(self, transfer_id: str) -> None:
        """See `Prompts.free`."""
        self._core.abort(held_id(transfer_id))
