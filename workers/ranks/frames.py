"""What the ranks of a worker say to each other: msgpack arrays that begin with their kind.

    rank 0 → rank r     Challenge, Admitted, Refused, Welcome, StoreReply, Draft, Step, Order, Stop
    rank r → rank 0     Answer, Hello, StoreCall, Ready, Report
    both                Beat, Failed

A frame is built from what msgpack knows (numbers, strings, bytes, arrays) and checked field by
field before anybody sees it. A new kind is a class here and a member of `Frame`. What travels with
`Order` and `Report` belongs to those who registered for their kind.
"""

from array import array
from collections.abc import Sequence
from typing import Literal

import msgspec

from twinflow.runtime.model_runner import SequenceRows
from twinflow.runtime.speculative.layer_parallel.config import Layout

PROTOCOL_VERSION = 4

StoreOperation = Literal["set", "get", "add", "compare_set", "check", "delete"]


class _Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Common to all frames."""


class Challenge(_Frame, frozen=True, tag="challenge"):
    """Prove that you know the secret.

    Attributes:
        version: of this protocol.
        nonce: never used before.
    """

    version: int
    nonce: bytes


class Answer(_Frame, frozen=True, tag="answer"):
    """The proof, and a challenge in return.

    Attributes:
        nonce: never used before.
        proof: of the follower, over both nonces.
    """

    nonce: bytes
    proof: bytes


class Admitted(_Frame, frozen=True, tag="admitted"):
    """The proof was right.

    Attributes:
        proof: of the leader, over both nonces.
    """

    proof: bytes


class Refused(_Frame, frozen=True, tag="refused"):
    """This rank is not wanted, and why."""

    reason: str


class Hello(_Frame, frozen=True, tag="hello"):
    """Who the follower is and what it could serve.

    Attributes:
        worker_id: whose rank it is.
        epoch: life of the worker.
        rank: which rank.
        size: how many ranks it believes there are.
        layout: digest of the worker's KV layout.
        num_blocks: KV blocks that it has memory for.
    """

    worker_id: str
    epoch: int
    rank: int
    size: int
    layout: str
    num_blocks: int


class Welcome(_Frame, frozen=True, tag="welcome"):
    """All ranks are here.

    Attributes:
        num_blocks: KV blocks that each allocates.
    """

    num_blocks: int


class StoreCall(_Frame, frozen=True, tag="store"):
    """A call of the rendezvous store; see `StoreBackend`. Fields that it has no use for are empty.

    Attributes:
        operation: which.
        keys: one, or those to check.
        value: to be stored.
        expected: value to be replaced.
        amount: to be added.
    """

    operation: StoreOperation
    keys: list[str]
    value: bytes = b""
    expected: bytes = b""
    amount: int = 0


class StoreReply(_Frame, frozen=True, tag="stored"):
    """What a store call returned, or what went wrong.

    Attributes:
        value: None where there is none.
        error: empty if it went well.
    """

    value: bytes | int | None = None
    error: str = ""


class Ready(_Frame, frozen=True, tag="ready"):
    """The model is loaded.

    Attributes:
        fingerprint: of configuration and weights.
        address: where this rank hands KV over; empty if it does not.
        parts: names of the KV parts that it holds.
    """

    fingerprint: str
    address: str = ""
    parts: tuple[str, ...] = ()


class Beat(_Frame, frozen=True, tag="beat"):
    """The sender lives."""


class Failed(_Frame, frozen=True, tag="failed"):
    """The sender ends, and the worker with it; `reason` says why."""

    reason: str


class Rows(_Frame, frozen=True):
    """A `SequenceRows`; tokens and blocks as native 32-bit integers."""

    token_ids: bytes
    start: int
    block_ids: bytes
    samples: bool
    prompt_tokens: int
    held_as: str | None
    layer_start: int
    layer_end: int | None
    sequence: str
    drafted: int
    ancestors: tuple[int, ...] = ()
    copied_block: int = 0


class Step(_Frame, frozen=True, tag="step"):
    """Compute these rows.

    Attributes:
        number: one more than that of the step before.
        rows: in the order of the engine.
        layers_per_unit: see `ModelRunner.forward`.
        forgotten: sequences to be forgotten before, see `ModelRunner.forget`.
        drafts: by the model that drafts, not by the one that is served.
        groups: sizes of the groups of its layers; None for one layer after the other.
    """

    number: int
    rows: list[Rows]
    layers_per_unit: int
    forgotten: list[str]
    drafts: bool = False
    groups: list[int] | None = None

    def sequence_rows(self) -> list[SequenceRows]:
        """The rows as runners take them.

        Raises:
            ValueError: tokens or blocks are not whole integers.
        """
        return [
            SequenceRows(
                token_ids=_integers(rows.token_ids),
                start=rows.start,
                block_ids=_integers(rows.block_ids),
                samples=rows.samples,
                prompt_tokens=rows.prompt_tokens,
                held_as=rows.held_as,
                layer_start=rows.layer_start,
                layer_end=rows.layer_end,
                sequence=rows.sequence,
                drafted=rows.drafted,
                ancestors=rows.ancestors,
                copied_block=rows.copied_block,
            )
            for rows in self.rows
        ]


class Draft(_Frame, frozen=True, tag="draft"):
    """Load your share of the model that drafts, in place of what you have of it.

    Attributes:
        layout: see `DraftShare`.
        mlp: likewise.
        ranks: likewise.
    """

    layout: Layout
    mlp: Literal["tp", "replicated"]
    ranks: int


class Order(_Frame, frozen=True, tag="order"):
    """Something that a follower does beside its steps.

    Attributes:
        kind: whose order it is.
        body: what that one makes of it.
    """

    kind: str
    body: bytes


class Report(_Frame, frozen=True, tag="report"):
    """What a follower has to say about its orders; fields as in `Order`."""

    kind: str
    body: bytes


class Stop(_Frame, frozen=True, tag="stop"):
    """Nothing more will come: end in good order."""


Frame = (
    Challenge
    | Answer
    | Admitted
    | Refused
    | Hello
    | Welcome
    | StoreCall
    | StoreReply
    | Ready
    | Beat
    | Failed
    | Draft
    | Step
    | Order
    | Report
    | Stop
)


def step_frame(
    number: int,
    rows: Sequence[SequenceRows],
    layers_per_unit: int,
    forgotten: Sequence[str] = (),
) -> Step:
    """The frame for a step of the model that is served."""
    return Step(number, _wire(rows), layers_per_unit, list(forgotten))


def draft_frame(number: int, rows: Sequence[SequenceRows], groups: Sequence[range] | None) -> Step:
    """The frame for a step of the model that drafts."""
    sizes = None if groups is None else [len(group) for group in groups]
    return Step(number, _wire(rows), 0, [], drafts=True, groups=sizes)


def _wire(rows: Sequence[SequenceRows]) -> list[Rows]:
    return [
        Rows(
            token_ids=array("i", group.token_ids).tobytes(),
            start=group.start,
            block_ids=array("i", group.block_ids).tobytes(),
            samples=group.samples,
            prompt_tokens=group.prompt_tokens,
            held_as=group.held_as,
            layer_start=group.layer_start,
            layer_end=group.layer_end,
            sequence=group.sequence,
            drafted=group.drafted,
            ancestors=group.ancestors,
            copied_block=group.copied_block,
        )
        for group in rows
    ]


def _integers(data: bytes) -> Sequence[int]:
    numbers = array("i")
    numbers.frombytes(data)
    return numbers
