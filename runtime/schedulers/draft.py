"""A plan in the making, and what all policies do alike: decode rows, preemption, admission.

Every decoding request gets its row first, so no prompt ever stalls one. Rows that verify proposals
come next, and only while memory is plenty: nobody is preempted for a guess. When a decoding request
needs a block and none is idle, the request of the worst rank is preempted and computed again later.
A request comes in with the blocks of its whole prompt, and nobody who waits overtakes in the
policy's order: if one does not fit, none behind it is let in, so no request waits for ever.
"""

import math
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from twinflow.runtime.request import Request, RequestStatus
from twinflow.runtime.schedulers.base import SchedulerLimits, SchedulerState
from twinflow.runtime.schedulers.search import largest
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.runtime.step_plan import RowGroup, RowKind, StepPlan
from twinflow.runtime.tree_branches import branch_blocks

# Gives rows to a prompt from a token on, if there are any to give; says whether there were.
GiveRows = Callable[[Request, int], bool]


class Draft:
    """A plan in the making.

    Args:
        setup: of the policy.
        state: at the start of the step.

    Attributes:
        running: requests that still run; those preempted are gone.
        decoding: those of them that get a decode row.
        budget: rows that are left.
        groups: rows that are given.
    """

    def __init__(self, setup: SchedulerSetup, state: SchedulerState) -> None:
        self._setup = setup
        self._state = state
        self._idle = state.blocks.num_idle
        self._admitted: list[Request] = []
        self._receive: list[str] = []
        self._preempted: list[str] = []
        self.running = list(state.running)
        self.decoding: list[Request] = []
        self.budget = setup.limits.max_num_batched_tokens
        self.groups: list[RowGroup] = []

    @property
    def limits(self) -> SchedulerLimits:
        """Bounds of the plan."""
        return self._setup.limits

    @property
    def seats(self) -> int:
        """How many more requests may hold blocks."""
        taken = len(self._state.running) + self._state.num_parked + len(self._admitted)
        return self.limits.max_num_seqs - taken

    @property
    def prefilling(self) -> list[Request]:
        """Running requests with more than a decode row to compute."""
        return [r for r in self.running if r.wave or r.num_uncomputed > 1]

    def plan(self, *, layer_groups: int = 1, idle_until: float | None = None) -> StepPlan:
        """What has come of it."""
        return StepPlan(
            row_groups=tuple(self.groups),
            receive=tuple(self._receive),
            preempted=tuple(self._preempted),
            layer_groups=layer_groups,
            idle_until=idle_until,
        )

    def decode(self) -> None:
        """Give each decoding request its row and its block, and then rows to what was proposed."""
        blocks, index = self._state.blocks, 0
        while index < len(self.running):
            request = self.running[index]
            if request.num_uncomputed == 1 and not request.wave and self.budget > 0:
                held = blocks.num_held(request.request_id)
                missing = blocks.blocks_for(request.num_tokens) - held
                if missing > self._idle:
                    self._preempt()
                    continue
                self._idle -= max(missing, 0)
                self.decoding.append(request)
                self._add_decode_row(request)
            index += 1
        if not self._preempted:
            self._verify()

    def _verify(self) -> None:
        """Give rows to proposals as far as there are blocks that nobody waits for.

        No proposal takes rows from another one: the budget has rows for the longest of each seat.
        """
        for index, request in enumerate(self.decoding):
            if not request.draft:
                continue
            drafted, extra = self._fitting(request)
            if drafted <= 0:
                continue
            self._idle -= extra
            self.budget -= drafted
            self.groups[index] = replace(
                self.groups[index],
                token_count=1 + drafted,
                kind=RowKind.VERIFY,
                drafted=drafted,
            )

    def _fitting(self, request: Request) -> tuple[int, int]:
        """How many nodes of a proposal there is room for, and how many more blocks they need."""
        blocks, draft = self._state.blocks, request.draft
        own = max(blocks.num_held(request.request_id), blocks.blocks_for(request.num_tokens))
        spare = max(self._idle - self.limits.watermark_blocks, 0)
        most = min(len(draft), self.budget)
        if draft.is_chain:
            room = (own + spare) * blocks.block_size - request.num_tokens
            drafted = min(most, room)
            return drafted, max(blocks.blocks_for(request.num_tokens + drafted) - own, 0)

        def needed(nodes: int) -> int:
            root = request.num_tokens - 1
            tokens, besides = branch_blocks(draft.shortened(nodes), root, blocks.block_size)
            return max(blocks.blocks_for(tokens) - own, 0) + besides

        drafted = largest(0, most, lambda nodes: needed(nodes) <= spare)
        return drafted, needed(drafted) if drafted else 0

    def _add_decode_row(self, request: Request) -> None:
        """As `add` does for the last row of a request, in most of all rows' case without asking."""
        self.budget -= 1
        kind = RowKind.DECODE if request.output_token_ids else RowKind.PREFILL
        self.groups.append(
            RowGroup(
                request.request_id,
                request.num_computed,
                1,
                0,
                self._setup.limits.num_layers,
                kind,
                samples=True,
            )
        )

    def _preempt(self) -> None:
        """Take the blocks of the running request with the worst rank.

        Rows are given out in order of rank, so the victim has no row in this plan yet. A request
        that is prefilled for another worker is spared while others are left: its blocks are
        being read.
        """
        victim = next((r for r in reversed(self.running) if not r.hold), self.running[-1])
        self.running.remove(victim)
        self._idle += self._state.blocks.num_reclaimable(victim.request_id)
        self._preempted.append(victim.request_id)

    def add_chunk(self, request: Request, start: int, most: float = math.inf) -> bool:
        """Give a prompt the rows that are left, or `most` of them; False if that is none."""
        count = int(min(request.num_tokens - start, self.budget, most))
        if count > 0:
            self.add(request, start, count)
        return count > 0

    def prompts(self) -> list[Request]:
        """Prompts that are begun or wait, in the policy's order."""
        return self._setup.order.sort(self.prefilling, self._state)

    def fill(self, prompts: Iterable[Request], give: GiveRows) -> None:
        """Give rows to prompts in order, and let in those who wait as long as one fits.

        Args:
            prompts: running or waiting.
            give: gives rows to one of them.
        """
        # Whoever was preempted waits for its turn again: admitting others would undo the gain.
        open_door = not self._preempted
        for request in prompts:
            if request.status is RequestStatus.RUNNING:
                give(request, request.num_computed)
            elif open_door:
                open_door = self._admit(request, give)

    def _admit(self, request: Request, give: GiveRows) -> bool:
        if self.seats <= 0 or not (self.budget > 0 or request.fetch):
            return False
        blocks = self._state.blocks
        match = blocks.match(request)
        needed = blocks.blocks_for(request.num_tokens) - len(match.blocks) + match.num_idle
        # The reserve, which looks at everybody, only where it can matter.
        if needed > self._idle or needed + self._reserve(request) > self._idle:
            return False
        if _fetches(request, match.num_tokens, blocks.block_size):
            self._receive.append(request.request_id)
        elif not give(request, match.num_tokens):
            return False
        self._idle -= needed
        self._admitted.append(request)
        return True

    def _reserve(self, candidate: Request) -> int:
        holders = [*self.running, *self._state.growing, *self._admitted]
        if not holders and not self._state.num_parked:
            return 0
        return self._setup.admission.reserve(self._state, holders, candidate)

    def add(
        self, request: Request, start: int, count: int, layers: tuple[int, int] | None = None
    ) -> None:
        """Give rows to a request; see `rows`."""
        self.budget -= count
        self.groups.append(self.rows(request, start, count, layers))

    def rows(
        self, request: Request, start: int, count: int, layers: tuple[int, int] | None = None
    ) -> RowGroup:
        """Rows of a request.

        Args:
            request: whose.
            start: position of the first.
            count: how many; the request samples if these are all that is left of it.
            layers: first layer and one behind the last; None for all.
        """
        first, end = layers or (0, self.limits.num_layers)
        wanted = request.num_tokens - start
        decoding = wanted == 1 and bool(request.output_token_ids)
        return RowGroup(
            request_id=request.request_id,
            token_start=start,
            token_count=count,
            layer_start=first,
            layer_end=end,
            kind=RowKind.DECODE if decoding else RowKind.PREFILL,
            samples=count == wanted and end == self.limits.num_layers,
        )


def _fetches(request: Request, num_cached: int, block_size: int) -> bool:
    """Whether another worker computes the prompt.

    What is left behind a cached prefix, up to a block, is cheaper to finish here in one small chunk
    than to ask for.
    """
    short_rest = num_cached > 0 and request.num_tokens - num_cached <= block_size
    return request.fetch and (request.probe or not short_rest)
