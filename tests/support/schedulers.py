"""Requests in any state over real blocks for one plan, and a scheduler that checks every plan."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.engines import NUM_LAYERS, create_request

from twinflow.runtime.cost.base import StepLoad, StepTimes
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.output_history import OutputHistory
from twinflow.runtime.queues import RequestQueues
from twinflow.runtime.request import Request, RequestStatus, Wave
from twinflow.runtime.schedulers import create_scheduler
from twinflow.runtime.schedulers.admission import create_admission
from twinflow.runtime.schedulers.base import Scheduler, SchedulerLimits, SchedulerState
from twinflow.runtime.schedulers.orders import create_order
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.runtime.step_plan import RowGroup, RowKind, StepPlan
from twinflow.runtime.tree_branches import branch_blocks


class LinearTimes:
    """Step times that are sums: for the step, for each row and pair in each layer, and for each
    layer that is crossed at all."""

    def __init__(
        self, step: float = 0.5, layer: float = 0.25, row: float = 0.125, pair: float = 0.0
    ) -> None:
        self._prices = (step, layer, row, pair)

    def seconds(self, load: StepLoad, share: float = 1.0) -> float:
        """See `StepTimes.seconds`."""
        step, layer, row, pair = self._prices
        total = step
        for segment in load.segments:
            pairs = segment.prefill.pairs + segment.decode.pairs
            total += segment.layers * (layer + row * segment.rows + pair * pairs)
        return total / share


class SchedulerBench:
    """A queue of waiting and running requests, and the plan that a policy makes for it."""

    def __init__(
        self,
        policy: str | Callable[[SchedulerSetup], Scheduler] = "chunked",
        *,
        num_blocks: int = 65,
        block_size: int = 4,
        max_num_seqs: int = 8,
        budget: int = 16,
        watermark: int = 0,
        prefill_order: str = "fcfs",
        admission: str = "aggressive",
        times: StepTimes | None = None,
        **objectives: float,
    ) -> None:
        self.blocks = BlockManager(
            num_blocks, block_size, model_fingerprint="model", layout_digest="layout"
        )
        self.queues = RequestQueues()
        self.history = OutputHistory()
        limits = SchedulerLimits(max_num_seqs, budget, NUM_LAYERS, watermark)
        setup = SchedulerSetup(
            limits,
            create_order(prefill_order, objectives.get("ttft_objective")),
            create_admission(admission, limits),
            times,
            **objectives,
        )
        made = create_scheduler(policy, setup) if isinstance(policy, str) else policy(setup)
        order = "fcfs" if prefill_order == "fcfs" and isinstance(policy, str) else None
        self.scheduler = CheckedScheduler(made, limits, order=order)

    def waiting(self, prompt: int | Sequence[int] = 8, **changes: Any) -> str:
        """Queue a request; returns its id."""
        request = create_request(prompt, **changes)
        self.queues.add(request)
        return request.request_id

    def running(
        self,
        prompt: int | Sequence[int] = 8,
        *,
        computed: int | None = None,
        wave: Wave | None = None,
        **changes: Any,
    ) -> str:
        """A request that decodes or, with fewer tokens `computed`, is still prefilled."""
        request = create_request(prompt, **changes)
        self.queues.add(request)
        if computed is None:
            request.output_token_ids.append(1)
        self.blocks.open(request, self.blocks.match(request))
        self.blocks.grow(request.request_id, len(request.prompt_token_ids))
        request.num_computed = request.num_tokens - 1 if computed is None else computed
        request.wave = wave
        self.blocks.publish(request)
        self.queues.move(request, RequestStatus.RUNNING)
        return request.request_id

    def parked(self, prompt: int = 8) -> str:
        """A request whose blocks another worker reads."""
        request_id = self.running(prompt)
        self.queues.move(self.request(request_id), RequestStatus.HELD)
        return request_id

    def receiving(self, prompt: int = 8, **changes: Any) -> str:
        """A request whose KV is on its way."""
        request_id = self.running(prompt, computed=0, **changes)
        self.queues.move(self.request(request_id), RequestStatus.RECEIVING)
        return request_id

    def request(self, request_id: str) -> Request:
        """A request that is here."""
        request = self.queues.get(request_id)
        assert request is not None
        return request

    def plan(self, now: float = 0.0) -> StepPlan:
        """What the policy decides now."""
        return self.scheduler.plan(self.state(), now)

    def state(self) -> SchedulerState:
        """What the policy sees."""
        queues = self.queues
        return SchedulerState(
            queues.running,
            queues.waiting,
            queues.num_parked,
            self.blocks,
            queues.receiving,
            self.history,
        )


@dataclass(frozen=True)
class _Look:
    """What a plan must not change."""

    running: tuple[Request, ...]
    waiting: tuple[Request, ...]
    tokens: tuple[tuple[int, int, RequestStatus, Wave | None], ...]
    tables: tuple[tuple[int, ...], ...]
    num_idle: int


class CheckedScheduler:
    """Hands every question on to a policy and demands of every answer what all policies owe.

    Args:
        policy: to be checked.
        limits: of its plans.
        order: `fcfs` if those who wait come in by rank, `spf` if they may overtake those that came
            up to `overtaking` seconds before them; None if that is not checked.
        overtaking: likewise.
    """

    def __init__(
        self,
        policy: Scheduler,
        limits: SchedulerLimits,
        *,
        order: str | None = "fcfs",
        overtaking: float = 0.0,
    ) -> None:
        self._policy = policy
        self._limits = limits
        self._order = order
        self._overtaking = overtaking
        self.plans: list[StepPlan] = []

    def plan(self, state: SchedulerState, now: float) -> StepPlan:
        before = _look(state)
        plan = self._policy.plan(state, now)
        assert self._policy.plan(state, now) == plan, "the policy has a memory or a clock"
        assert _look(state) == before, "the policy changed what it was shown"
        self._check_rows(state, plan)
        self._check_seats(state, plan)
        self._check_order(state, plan)
        self._check_blocks(state, plan)
        assert plan.idle_until is None or (plan.idle_until > now and not plan.row_groups)
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
            self._check_group(known[group.request_id], group, state)
        left = [r for r in state.running if r.request_id not in plan.preempted]
        decoding = {r.request_id for r in left if r.num_uncomputed == 1 and not r.wave}
        first = [group.request_id for group in plan.row_groups][: len(decoding)]
        if len(decoding) <= self._limits.max_num_batched_tokens:
            assert set(first) == decoding, "a decoding request got no row, or not first"
        under_way = {r.request_id for r in left if r.wave}
        assert under_way <= set(named), "a wave has stopped"

    def _check_group(self, request: Request, group: RowGroup, state: SchedulerState) -> None:
        num_layers, wave = self._limits.num_layers, request.wave
        if wave is not None:
            assert (group.token_start, group.token_count) == (wave.token_start, wave.token_count)
            assert group.layer_start == wave.next_layer
        elif request.status is RequestStatus.RUNNING:
            assert (group.token_start, group.layer_start) == (request.num_computed, 0)
        else:
            assert group.token_start == state.blocks.match(request).num_tokens
            assert group.layer_start == 0
        count = group.token_count - group.drafted
        assert 1 <= count <= request.num_tokens - group.token_start
        assert group.layer_start < group.layer_end <= num_layers
        last = group.token_start + count == request.num_tokens and group.layer_end == num_layers
        assert group.samples == last
        assert (group.kind is RowKind.VERIFY) == (group.drafted > 0)
        if group.drafted:
            assert count == 1
            assert group.drafted <= min(len(request.draft), self._limits.rows_per_seat - 1)
        if request.output_token_ids and request.num_uncomputed == 1 and not wave:
            assert group.layer_end == num_layers, "a decode row stops short"

    def _check_seats(self, state: SchedulerState, plan: StepPlan) -> None:
        """Who is preempted is behind, and nobody takes his seat at once."""
        admitted = sum(r.request_id in _planned(plan) for r in state.waiting)
        seats = len(state.running) - len(plan.preempted) + state.num_parked + admitted
        assert seats <= self._limits.max_num_seqs
        movable = [r for r in state.running if not r.hold]
        worst = movable[len(movable) - len(plan.preempted) :]
        assert {r.request_id for r in worst} == set(plan.preempted)
        assert not (plan.preempted and admitted)

    def _check_order(self, state: SchedulerState, plan: StepPlan) -> None:
        """Nobody is overtaken by those who must not."""
        planned = _planned(plan)
        admitted = [r.request_id in planned for r in state.waiting]
        if self._order == "fcfs":
            assert admitted == sorted(admitted, reverse=True), "a waiting request was overtaken"
        if self._order == "spf":
            for late, early in ((a, b) for a in state.waiting for b in state.waiting):
                if late.priority >= early.priority and early.request_id not in planned:
                    overtakes = late.request_id in planned
                    assert not (overtakes and late.arrival > early.arrival + self._overtaking)

    def _check_blocks(self, state: SchedulerState, plan: StepPlan) -> None:
        """Carried out in order, the plan never needs a block that is not there."""
        idle = state.blocks.num_idle
        idle += sum(state.blocks.num_reclaimable(request_id) for request_id in plan.preempted)
        known = {r.request_id: r for r in (*state.running, *state.waiting)}
        drafted = {group.request_id: group.drafted for group in plan.row_groups}
        for request_id in _planned(plan):
            request = known[request_id]
            match = state.blocks.match(request)
            waits = request.status is RequestStatus.WAITING
            held = len(match.blocks) if waits else state.blocks.num_held(request_id)
            draft = request.draft.shortened(drafted.get(request_id, 0))
            needed = request.num_tokens + len(draft)
            if not draft.is_chain:
                root = request.num_tokens - 1
                needed, besides = branch_blocks(draft, root, state.blocks.block_size)
                idle -= besides
            idle -= max(0, state.blocks.blocks_for(needed) - held)
            # Cautious: two requests of a plan may match the same idle block.
            idle -= match.num_idle if waits else 0
        assert idle >= 0


def _planned(plan: StepPlan) -> set[str]:
    return {*plan.receive, *(group.request_id for group in plan.row_groups)}


def _look(state: SchedulerState) -> _Look:
    requests = (*state.running, *state.waiting)
    blocks = state.blocks
    assert isinstance(blocks, BlockManager)
    return _Look(
        tuple(state.running),
        tuple(state.waiting),
        tuple((r.num_computed, r.num_tokens, r.status, r.wave) for r in requests),
        tuple(tuple(blocks.blocks(r.request_id)) for r in requests),
        blocks.num_idle,
    )
