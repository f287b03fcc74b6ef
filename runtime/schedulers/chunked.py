"""Stall-free batching with chunked prefill, as in Sarathi-Serve (OSDI '24, arXiv 2403.02310).

A step has a budget of rows. Every decoding request gets one row first, so no prefill ever stalls
a decode; prompts that are already being computed take what is left, in chunks; then waiting
requests are admitted in order while budget and blocks last. A request's whole prompt is reserved
at admission. When a decoding request needs a block and none is idle, the request of the worst
rank is preempted and computed again later.

The policy is first come, first served within a priority and never overtakes: if the head of the
queue does not fit, nothing behind it is admitted, so no request waits for ever.
"""

from dataclasses import dataclass, field

from twinflow.runtime.request import Request
from twinflow.runtime.schedulers.base import SchedulerLimits, SchedulerState
from twinflow.runtime.step_plan import RowGroup, RowKind, StepPlan


@dataclass(slots=True)
class _Draft:
    """A plan in the making: what is decided, and what budget and blocks remain."""

    budget: int
    idle: int
    groups: list[RowGroup] = field(default_factory=list)
    receive: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)


class ChunkedScheduler:
    """Decodes first, then chunks of running prompts, then admissions."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self._limits = limits

    def plan(self, state: SchedulerState, now: float) -> StepPlan:
        """See `Scheduler.plan`; this policy does not look at the time."""
        draft = _Draft(self._limits.max_num_batched_tokens, state.blocks.num_idle)
        survivors = self._decode(state, draft)
        self._continue_prefills(survivors, draft)
        # Whoever was preempted waits for its turn again: admitting others would undo the gain.
        if not draft.preempted:
            self._admit(state, draft)
        return StepPlan(tuple(draft.groups), tuple(draft.receive), tuple(draft.preempted))

    def _decode(self, state: SchedulerState, draft: _Draft) -> list[Request]:
        """Give each decoding request its row and its block; returns who is still running."""
        survivors = list(state.running)
        index = 0
        while index < len(survivors):
            request = survivors[index]
            if request.num_uncomputed == 1 and draft.budget > 0:
                missing = state.blocks.blocks_for(request.num_tokens) - state.blocks.num_held(
                    request.request_id
                )
                if missing > draft.idle:
                    self._preempt(survivors, state, draft)
                    continue
                draft.idle -= max(missing, 0)
                self._schedule(request, request.num_computed, 1, draft)
            index += 1
        return survivors

    def _preempt(self, survivors: list[Request], state: SchedulerState, draft: _Draft) -> None:
        """Take the blocks of the running request with the worst rank.

        Rows are given out in order of rank, so the victim has no row in this plan yet. A request
        that is prefilled for another worker is spared while others are left: its blocks are
        being read.
        """
        victim = next((r for r in reversed(survivors) if not r.hold), survivors[-1])
        survivors.remove(victim)
        draft.idle += state.blocks.num_reclaimable(victim.request_id)
        draft.preempted.append(victim.request_id)

    def _continue_prefills(self, survivors: list[Request], draft: _Draft) -> None:
        for request in survivors:
            if request.num_uncomputed > 1 and draft.budget > 0:
                self._schedule(request, request.num_computed, request.num_uncomputed, draft)

    def _admit(self, state: SchedulerState, draft: _Draft) -> None:
        seats = self._limits.max_num_seqs - len(state.running) - state.num_parked
        for request in state.waiting[: max(seats, 0)]:
            match = state.blocks.match(request)
            missing = state.blocks.blocks_for(request.num_tokens) - len(match.blocks)
            reserve = self._limits.watermark_blocks if state.running or draft.groups else 0
            if match.num_idle + missing + reserve > draft.idle:
                break
            if self._fetches(request, match.num_tokens, state.blocks.block_size):
                draft.receive.append(request.request_id)
            elif draft.budget > 0:
                uncomputed = request.num_tokens - match.num_tokens
                self._schedule(request, match.num_tokens, uncomputed, draft)
            else:
                break
            draft.idle -= match.num_idle + missing

    @staticmethod
    def _fetches(request: Request, num_cached: int, block_size: int) -> bool:
        """Whether another worker computes the prompt.

        What is left behind a cached prefix, up to a block, is cheaper to finish here in one small
        chunk than to ask for.
        """
        short_rest = num_cached > 0 and request.num_tokens - num_cached <= block_size
        return request.fetch and (request.probe or not short_rest)

    def _schedule(self, request: Request, start: int, wanted: int, draft: _Draft) -> None:
        count = min(wanted, draft.budget)
        draft.budget -= count
        decoding = wanted == 1 and bool(request.output_token_ids)
        draft.groups.append(
            RowGroup(
                request_id=request.request_id,
                token_start=start,
                token_count=count,
                layer_start=0,
                layer_end=self._limits.num_layers,
                kind=RowKind.DECODE if decoding else RowKind.PREFILL,
                samples=count == wanted,
            )
        )
