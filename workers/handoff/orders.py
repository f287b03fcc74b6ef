"""What rank 0 and the other ranks of a worker say to each other about hand-offs.

    rank 0 → others     Hold, Drop       the worker sends: a prompt is computed; its KV is given up
                        Fetch, GiveUp    the worker receives
    others → rank 0     Dropped, Fetched each answers one of the above, when links are quiet

They travel as bodies of `Order` and `Report` (see `twinflow.workers.ranks.frames`), as msgpack
arrays that begin with their kind.
"""

from array import array
from collections.abc import Sequence

import msgspec

from twinflow.protos.errors import HandoffError, StaleLink
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb

KIND = "handoff"


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Common to all.

    Attributes:
        transfer_id: of the hand-off.
    """

    transfer_id: str


class Hold(_Message, frozen=True, tag="hold"):
    """A prompt is going to be computed, and other workers' ranks will ask for its KV.

    Attributes:
        num_tokens: of the prompt.
    """

    num_tokens: int


class Drop(_Message, frozen=True, tag="drop"):
    """Send no more of a prompt; answered when nothing reads its blocks.

    Attributes:
        complete: the receiver has everything: let conversations end by themselves.
    """

    complete: bool


class Fetch(_Message, frozen=True, tag="fetch"):
    """Receive the KV of a prompt into blocks; answered when it is here, or nothing writes to them.

    Attributes:
        sender: the worker that computes it, a `Peer`.
        first_block: first block of the sequence that is received by some rank.
        num_blocks: of the whole sequence.
        table: the block table, an entry of which is a block on each rank; 32-bit integers.
        deadline_ms: time left until the request's deadline.
        fresh: over new links only.
    """

    sender: bytes
    first_block: int
    num_blocks: int
    table: bytes
    deadline_ms: int
    fresh: bool

    def peer(self) -> pb.Peer:
        """The worker that computes the prompt."""
        return pb.Peer.FromString(self.sender)

    def blocks(self) -> Sequence[int]:
        """The block table."""
        numbers = array("i")
        numbers.frombytes(self.table)
        return numbers


class GiveUp(_Message, frozen=True, tag="give up"):
    """End a `Fetch`, which then is answered soon."""


class Dropped(_Message, frozen=True, tag="dropped"):
    """Nothing of this rank reads the blocks any more."""


class Fetched(_Message, frozen=True, tag="fetched"):
    """How a `Fetch` ended.

    Attributes:
        num_bytes: received.
        seconds: from the first announcement to the last digest.
        digests_refused: pages that arrived with a wrong digest.
        problem: why it failed; empty if every block is here and right.
        stale: it failed because an idle link was dead.
    """

    num_bytes: int = 0
    seconds: float = 0.0
    digests_refused: int = 0
    problem: str = ""
    stale: bool = False

    def check(self, rank: int) -> None:
        """Raise why it failed on a rank, if it did.

        Raises:
            StaleLink: over new links it may go well.
            HandoffError: it failed otherwise.
        """
        if self.problem:
            error = StaleLink if self.stale else HandoffError
            raise error(f"rank {rank}: {self.problem}")


Order = Hold | Drop | Fetch | GiveUp
Answer = Dropped | Fetched

_ENCODER = msgspec.msgpack.Encoder()
_ORDERS: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_ANSWERS: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode(message: Order | Answer) -> bytes:
    """As the body of an order or a report."""
    return _ENCODER.encode(message)


def order_of(body: bytes) -> Order:
    """The order in a body; raises msgspec.ValidationError if there is none."""
    return _ORDERS.decode(body)


def answer_of(body: bytes) -> Answer:
    """The answer in a body; raises msgspec.ValidationError if there is none."""
    return _ANSWERS.decode(body)
