"""What a scheduling policy sees and what it answers.

A policy is a pure function of what it is shown: it reads no clock, does no I/O, holds no tensors
and changes nothing. The engine carries its plan out; the same policy objects run in simulations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from twinflow.runtime.kv.block_manager import PrefixMatch
from twinflow.runtime.output_history import OutputHistory
from twinflow.runtime.request import Request
from twinflow.runtime.step_plan import StepPlan


class BlockView(Protocol):
    """The questions a policy may ask about KV memory."""

    @property
    def block_size(self) -> int:
        """Token slots of a block."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks that sequences can hold."""
        ...

    @property
    def num_idle(self) -> int:
        """Blocks that can be allocated now."""
        ...

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens fill."""
        ...

    def num_held(self, request_id: str) -> int:
        """Blocks of a sequence."""
        ...

    def num_reclaimable(self, request_id: str) -> int:
        """Blocks that go idle when the sequence is freed."""
        ...

    def match(self, request: Request) -> PrefixMatch:
        """The longest cached prefix of a sequence."""
        ...


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of every plan.

    Attributes:
        max_num_seqs: requests that hold blocks at the same time.
        max_num_batched_tokens: rows of a step.
        num_layers: layers of the model.
        watermark_blocks: blocks that admission leaves idle while others run.
        rows_per_seat: rows that a decoding request gets at most: one, and one for each token that
            may be proposed to it.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    num_layers: int
    watermark_blocks: int
    rows_per_seat: int = 1


class SchedulerState(msgspec.Struct, frozen=True):
    """The requests of an engine at the start of a step.

    Attributes:
        running: requests whose rows can be scheduled, best rank first.
        waiting: requests without blocks, best rank first.
        num_parked: requests that hold blocks without being scheduled: receiving and held ones, and
            those of another lane.
        blocks: the KV memory.
        growing: the parked ones that grow here: once their KV has come, or on another lane.
        history: how long outputs were lately.
    """

    running: Sequence[Request]
    waiting: Sequence[Request]
    num_parked: int
    blocks: BlockView
    growing: Sequence[Request] = ()
    history: OutputHistory = msgspec.field(default_factory=OutputHistory)


class Scheduler(Protocol):
    """A scheduling policy."""

    def plan(self, state: SchedulerState, now: float) -> StepPlan:
        """Decide the next step.

        Args:
            state: what there is to do; not changed.
            now: seconds on the engine's clock.

        Returns:
            The plan. Carried out from the start of the same step, it never needs more idle
            blocks than there are: preemptions first, then growth of running requests, then
            admissions in order.
        """
        ...
