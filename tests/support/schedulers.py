"""Requests in any state over real blocks for one plan, and a scheduler that checks every plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.engines import create_request

from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.queues import RequestQueues
from twinflow.runtime.request import Request, RequestStatus
from twinflow.runtime.schedulers import create_scheduler
from twinflow.runtime.schedulers.base import Scheduler, SchedulerLimits, SchedulerState
from twinflow.runtime.step_plan import StepPlan

NUM_LAYERS = 4


class SchedulerBench:
    """A queue of waiting and running requests, and the plan that a policy makes for it."""

    def __init__(
        self,
        *,
        num_blocks: int = 65,
        block_size: int = 4,
        max_num_seqs: int = 8,
        budget: int = 16,
        watermark: int = 0,
    ) -> None:
        self.blocks = BlockManager(
            num_blocks, block_size, model_fingerprint="model", layout_digest="layout"
        )
        self.queues = RequestQueues()
        limits = SchedulerLimits(max_num_seqs, budget, NUM_LAYERS, watermark)
        self.scheduler = CheckedScheduler(create_scheduler("chunked", limits), limits)

    def waiting(self, prompt: int | Sequence[int] = 8, **changes: Any) -> str:
        """Queue a request; returns its id."""
        request = create_request(prompt, **changes)
        self.queues.add(request)
        return request.request_id

    def running(
        self, prompt: int | Sequence[int] = 8, *, computed: int | None = None, **changes: Any
    ) -> str:
        """A request that decodes or, with fewer tokens `computed`, is still prefilled."""
        request = create_request(prompt, **changes)
        self.queues.add(request)
        if computed is None:
            request.output_token_ids.append(1)
        self.blocks.open(request, self.blocks.match(request))
        self.blocks.grow(request.request_id, len(request.prompt_token_ids))
        request.num_computed = request.num_tokens - 1 if computed is None else computed
        self.blocks.publish(request)
        self.queues.move(request, RequestStatus.RUNNING)
        return request.request_id

    def parked(self, prompt: int = 8) -> str:
        """A request whose blocks another worker reads."""
        request_id = self.running(prompt)
        request = self.queues.get(request_id)
        assert request is not None
        self.queues.move(request, RequestStatus.HELD)
        return request_id

    def plan(self) -> StepPlan:
        """What the policy decides now."""
        state = SchedulerState(
            self.queues.running, self.queues.waiting, self.queues.num_parked, self.blocks
        )
        return self.scheduler.plan(state, 0.0)


@dataclass(frozen=True)
class _Look:
    """What a plan must not change."""

    running: tuple[Request, ...]
    waiting: tuple[Request, ...]
    tokens: tuple[tuple[int, int, RequestStatus], ...]
    tables: tuple[tuple[int, ...], ...]
    num_idle: int


class CheckedScheduler:
    """Hands every question on to a policy and demands of every answer what all policies owe."""

    def __init__(self, policy: Scheduler, limits: SchedulerLimits) -> None:
        self._policy = policy
        self._limits = limits
        self.plans: list[StepPlan] = []

    def plan(self, state: SchedulerState, now: float) -> StepPlan:
        before = _look(state)
        plan = self._policy.plan(state, now)
        assert self._policy.plan(state, now + 1.0) == plan, "the policy has a memory or a clock"
        assert _look(state) == before, "the policy changed what it was shown"
        self._check_rows(state, plan)
        self._check_order(state, plan)
        self._check_blocks(state, plan)
        self.plans.append(plan)
        return plan

    def _check_rows(self, state: SchedulerState, plan: StepPlan) -> None:
        """Rows within the budget, each request once, from where it stands, decodes first."""
        assert plan.num_rows <= self._limits.max_num_batched_tokens
        named = [*plan.receive, *(group.request_id for group in plan.row_groups)]
        assert len(set(named)) == len(named)
        assert not set(named) & set(plan.preempted)
        known = {r.request_id: r for r in (*state.running, *state.waiting)}
        for group in plan.row_groups:
            request = known[group.request_id]
            if request.status is RequestStatus.RUNNING:
                assert group.token_start == request.num_computed
            else:
                assert group.token_start == state.blocks.match(request).num_tokens
            assert 1 <= group.token_count <= request.num_tokens - group.token_start
            assert group.samples == (group.token_end == request.num_tokens)
            assert (group.layer_start, group.layer_end) == (0, self._limits.num_layers)
        decoding = {r.request_id for r in state.running if r.num_uncomputed == 1}
        first = [group.request_id for group in plan.row_groups][: len(decoding)]
        served = decoding - set(plan.preempted)
        if len(served) <= self._limits.max_num_batched_tokens:
            assert set(first) >= served, "a decoding request got no row, or not first"

    def _check_order(self, state: SchedulerState, plan: StepPlan) -> None:
        """Nobody is overtaken: who is admitted is in front, who is preempted is behind."""
        planned = {*plan.receive, *(group.request_id for group in plan.row_groups)}
        admitted = [r.request_id in planned for r in state.waiting]
        assert admitted == sorted(admitted, reverse=True), "a waiting request was overtaken"
        seats = len(state.running) - len(plan.preempted) + state.num_parked + sum(admitted)
        assert seats <= self._limits.max_num_seqs
        movable = [r for r in state.running if not r.hold]
        worst = movable[len(movable) - len(plan.preempted) :]
        assert {r.request_id for r in worst} == set(plan.preempted)
        assert not (plan.preempted and any(admitted))

    def _check_blocks(self, state: SchedulerState, plan: StepPlan) -> None:
        """Carried out in order, the plan never needs a block that is not there."""
        idle = state.blocks.num_idle
        idle += sum(state.blocks.num_reclaimable(request_id) for request_id in plan.preempted)
        known = {r.request_id: r for r in (*state.running, *state.waiting)}
        for request_id in (*plan.receive, *(group.request_id for group in plan.row_groups)):
            request = known[request_id]
            match = state.blocks.match(request)
            waits = request.status is RequestStatus.WAITING
            held = len(match.blocks) if waits else state.blocks.num_held(request_id)
            idle -= max(0, state.blocks.blocks_for(request.num_tokens) - held)
            # Cautious: two requests of a plan may match the same idle block.
            idle -= match.num_idle if waits else 0
        assert idle >= 0


def _look(state: SchedulerState) -> _Look:
    requests = (*state.running, *state.waiting)
    blocks = state.blocks
    assert isinstance(blocks, BlockManager)
    return _Look(
        tuple(state.running),
        tuple(state.waiting),
        tuple((r.num_computed, r.num_tokens, r.status) for r in requests),
        tuple(tuple(blocks.blocks(r.request_id)) for r in requests),
        blocks.num_idle,
    )
