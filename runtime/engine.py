"""The engine: schedule, compute, update.

One plain object, driven from one thread, that takes requests in and gives tokens out. It knows
no clients, no network and no other worker: whoever drives it carries its orders to receive KV,
and reports back. A failure of one request, or of one step, never takes the engine down.

Steps are computed by its lanes (`runtime.lanes`): by the only one while the engine waits, or by two
at the same time. Whose rows are being computed keeps its blocks until they are, whatever happens.
"""

from collections.abc import Callable, Sequence

from twinflow.parallel.partition.control import Mode
from twinflow.protos.errors import (
    ContextLengthExceeded,
    EngineError,
    InvalidRequest,
    TwinflowError,
    WorkerLost,
)
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.executor import Executor, Work
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.kv_progress import OnKV, layer_listener
from twinflow.runtime.lanes.base import LaneFigures, Lanes, Step, StepOutcome
from twinflow.runtime.lanes.one import OneLane
from twinflow.runtime.lanes.view import decodes, lane_state
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.lifecycle import EngineCounters, EngineOutputs, RequestLifecycle
from twinflow.runtime.outputs import NumericalFault, PhaseTime, SampledRun, SampledToken
from twinflow.runtime.proposals import Proposals
from twinflow.runtime.queues import RequestQueues
from twinflow.runtime.request import Request, RequestStatus, Wave
from twinflow.runtime.schedulers.base import Scheduler, SchedulerState
from twinflow.runtime.speculative.draft import NOTHING
from twinflow.runtime.speculative.goodput.controller import GoodputController, GoodputFigures
from twinflow.runtime.speculative.invariants import check_step
from twinflow.runtime.step_plan import RowGroup, StepPlan


class Engine:
    """Continuous batching over one executor.

    Args:
        config: limits.
        executor: keeps the sampling state of requests, and computes unless there are lanes.
        blocks: accounts for the KV memory.
        scheduler: decides.
        num_layers: layers of the model.
        clock: seconds, monotonic; only durations are ever used.
        on_kv: told, from inside a step and on the thread that computes it, about every finished
            layer range of held requests.
        lanes: compute; None for one lane, on which the executor computes.
        goodput: says how much is worth proposing; None if that is always as much as is allowed.

    Attributes:
        executor: see above.
        blocks: see above.
        traffic: what experts did in the last step, by layer.
    """

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        blocks: BlockManager,
        scheduler: Scheduler,
        *,
        num_layers: int,
        clock: Callable[[], float],
        on_kv: OnKV | None = None,
        lanes: Lanes | None = None,
        goodput: GoodputController | None = None,
    ) -> None:
        self._num_layers = num_layers
        self._config = config
        self._lanes = lanes or OneLane(executor)
        self._under_way: dict[Mode | None, Step] = {}
        self._scheduler = scheduler
        self._clock = clock
        self._on_kv = on_kv
        self._failed_steps = 0
        self._busy_since = 0.0
        self._idle_until: float | None = None
        self._life = RequestLifecycle(
            executor, blocks, max_model_len=config.max_model_len, clock=clock
        )
        self._goodput = goodput
        self._proposals = Proposals(
            config, executor, blocks, self._life.counters.speculation, clock, goodput
        )
        self.executor = executor
        self.blocks = blocks
        self.traffic: tuple[LayerTraffic, ...] = ()

    @property
    def config(self) -> EngineConfig:
        """The limits."""
        return self._config

    @property
    def queues(self) -> RequestQueues:
        """All live requests."""
        return self._life.queues

    @property
    def counters(self) -> EngineCounters:
        """Totals since the start."""
        return self._life.counters

    @property
    def lane_figures(self) -> LaneFigures | None:
        """What the two lanes have done; None if there is one."""
        return self._lanes.figures

    @property
    def goodput(self) -> GoodputFigures | None:
        """How often proposing was worth it; None if that is not asked."""
        return None if self._goodput is None else self._goodput.figures

    @property
    def runnable(self) -> bool:
        """Whether a step might have something to do."""
        return bool(self.queues.running or self.queues.waiting)

    def idle_seconds(self, at_most: float) -> float:
        """After a step in which nothing could be done: how long to wait before the next one, unless
        something happens before."""
        if self._idle_until is None:
            return at_most
        return min(max(self._idle_until - self._clock(), 0.0), at_most)

    def add_request(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: it could never be served here.
        """
        if self.queues.get(request.request_id) is not None:
            raise InvalidRequest(f"request id {request.request_id} is already in use.")
        if not request.prompt_token_ids:
            raise InvalidRequest("the prompt has no tokens.", "prompt")
        longest = request.num_tokens if request.hold else request.max_total_tokens
        if longest > self._config.max_model_len:
            raise ContextLengthExceeded(
                f"prompt and max_tokens come to {longest} tokens; the limit is "
                f"{self._config.max_model_len}.",
                "max_tokens",
            )
        self._life.enqueue(request)

    def abort(self, request_id: str) -> None:
        """End a request silently; unknown ids are fine: it may just have finished.

        Nothing is heard of it any more. If its rows are being computed, its blocks are given back
        when they are.
        """
        request = self.queues.get(request_id)
        if request is not None:
            self._life.close(request)

    def take_outputs(self) -> EngineOutputs:
        """Everything that happened since the last call."""
        outputs, self._life.outputs = self._life.outputs, EngineOutputs()
        return outputs

    def step(self) -> bool:
        """Let every idle lane begin a step, wait until a step is over, and account for it.

        Returns:
            False if nothing could be done and nothing is under way.

        Raises:
            EngineError: too many steps in a row have failed, or a lane has died.
            WorkerLost: another process that takes part in steps is gone.
        """
        self._idle_until = None
        progressed = False
        for lane in self._lanes.idle():
            progressed = self._begin(lane) or progressed
        if not self._under_way:
            return progressed
        until = self._idle_until
        patience = None if until is None else max(until - self._clock(), 0.0)
        for outcome in self._lanes.over(patience):
            self._end(outcome)
        return True

    def interrupt(self) -> None:
        """Have a `step` that waits return soon; from any thread."""
        self._lanes.interrupt()

    def close(self) -> None:
        """Finish what is under way, whose results are lost; no step may follow."""
        self._lanes.close()
        if self._goodput is not None:
            self._goodput.close()

    def _begin(self, lane: Mode | None) -> bool:
        """Plan a step for a lane and hand it over; False if there is nothing to do."""
        plan = self._schedule(lane)
        work = tuple(self._work(plan))
        if work:
            self.counters.steps += 1
            for item in work:
                item.request.computing = True
            listener = layer_listener(work, self._on_kv)
            decoding = self._decoding_next() if lane is Mode.PREFILL else ()
            began = self._clock()
            step = Step(lane, work, plan.layer_groups, listener, decoding, began)
            if not self._under_way:
                self._busy_since = began
            self._under_way[lane] = step
            self._lanes.begin(step)
        return bool(plan.row_groups or plan.receive or plan.preempted)

    def _schedule(self, lane: Mode | None) -> StepPlan:
        state = self._state(lane)
        self._proposals.renew(state.running, self.queues)
        plan = self._scheduler.plan(state, self._clock())
        if plan.idle_until is not None:
            self._idle_until = plan.idle_until
        for request_id in plan.preempted:
            self._life.preempt(self._life.require(request_id))
        ids = (*plan.receive, *(group.request_id for group in plan.row_groups))
        self._life.admit(map(self._life.require, ids), plan.receive)
        return plan

    def _state(self, lane: Mode | None) -> SchedulerState:
        queues = self.queues
        state = SchedulerState(
            running=queues.running,
            waiting=queues.waiting,
            num_parked=queues.num_parked,
            blocks=self.blocks,
            growing=queues.receiving,
            history=self._life.history,
        )
        if lane is None:
            return state
        under_way = frozenset().union(*(step.requests for step in self._under_way.values()))
        return lane_state(state, lane, under_way)

    def _work(self, plan: StepPlan) -> list[Work]:
        work: list[Work] = []
        for group in plan.row_groups:
            request = self._life.require(group.request_id)
            draft = request.draft.shortened(group.drafted) if group.drafted else NOTHING
            branches = self._proposals.reserve(request, draft)
            blocks = self.blocks.blocks(request.request_id)
            work.append(Work(request, group, blocks, draft, branches))
        if self._config.check_steps:
            check_step(work, self.blocks)
        return work

    def _decoding_next(self) -> tuple[Request, ...]:
        return tuple(r for r in self.queues.running if decodes(r) and not r.computing)

    def _end(self, outcome: StepOutcome) -> None:
        """Account for a step that is over, and end the requests that were aborted meanwhile."""
        step = outcome.step
        del self._under_way[step.lane]
        if not self._under_way:
            self.counters.busy_seconds += self._clock() - self._busy_since
        for item in step.work:
            item.request.computing = False
        if outcome.error is not None:
            self._fail_step(step, outcome.error)
        else:
            self._failed_steps = 0
            self.traffic = tuple(outcome.traffic)
            self.counters.note_experts(self.traffic)
            self._proposals.timed(step.work, self._clock() - step.began)
            self._update(step, outcome.results)
        for item in step.work:
            if item.request.doomed:
                self._life.close(item.request)

    def _fail_step(self, step: Step, error: Exception) -> None:
        """If a whole step fails, every request in it does, and nobody else."""
        if isinstance(error, WorkerLost):
            raise error  # not this step alone: nothing can be computed here any more
        self._failed_steps += 1
        reason = f"the step failed with {type(error).__name__}: {error}"
        if self._failed_steps >= self._config.max_step_failures:
            raise EngineError(f"{self._failed_steps} times in a row, {reason}") from error
        for item in step.work:
            if not item.request.doomed:
                self._life.fail(item.request, EngineError(reason))

    def _update(self, step: Step, results: Sequence[SampledRun]) -> None:
        """Account for the computed rows and append the sampled tokens."""
        for item in step.work:
            if not item.request.doomed:
                self._advance(item.request, item.group, step.layer_groups)
        sampling = [item for item in step.work if item.group.samples]
        for item, result in zip(sampling, results, strict=True):
            if item.request.doomed:
                continue
            if isinstance(result, NumericalFault):
                self._life.fail(item.request, EngineError(str(result)))
            else:
                self._proposals.accept(item, result)
                self._life.extend(item.request, result, phase="decode")
                self._proposals.settle(item)

    def _advance(self, request: Request, group: RowGroup, layer_groups: int) -> None:
        """Tokens count as computed, and can be found by others, once they crossed all layers."""
        if group.layer_end < self._num_layers:
            groups = request.wave.groups if request.wave else layer_groups
            span = (group.token_start, group.token_count)
            request.wave = Wave(*span, group.layer_end, groups)
            return
        request.wave = None
        # Proposed tokens are the request's once it is known which of them it gets.
        request.num_computed += group.token_count - group.drafted
        self.blocks.publish(request)
        if group.token_end <= len(request.prompt_token_ids):
            self.counters.prompt_tokens += group.token_count

    def receive_first_token(
        self,
        request_id: str,
        sampled: SampledToken,
        phases: Sequence[PhaseTime],
        cached_tokens: int,
    ) -> None:
        """The worker that computes a prompt has sampled its first token; KV may still come.

        Args:
            request_id: a receiving request; one that was aborted meanwhile is passed over.
            sampled: the token.
            phases: where that worker's time went.
            cached_tokens: prompt tokens that it had in its prefix cache.
        """
        request = self._receiving(request_id)
        if request is not None and not request.doomed:
            self._life.first_token_received(request, sampled, phases, cached_tokens)

    def receive_done(self, request_id: str) -> None:
        """Every block of a receiving request arrived and was proved right."""
        request = self._receiving(request_id)
        if request is not None:
            self._life.received(request)

    def receive_failed(self, request_id: str, error: TwinflowError) -> None:
        """The KV will not come, and nothing writes to the blocks any more.

        The request is computed here instead; a probe fails with `error`.
        """
        request = self._receiving(request_id)
        if request is not None:
            self._life.receive_failed(request, error)

    def _receiving(self, request_id: str) -> Request | None:
        request = self.queues.get(request_id)
        return request if request and request.status is RequestStatus.RECEIVING else None

    def release(self, request_id: str) -> None:
        """Whoever read a held request's blocks is done with them; unknown ids are fine."""
        request = self.queues.get(request_id)
        if request is not None and request.status is RequestStatus.HELD:
            self._life.close(request)

    def check_integrity(self) -> None:
        """Recount queues and blocks; raises AssertionError with the first disagreement."""
        self.queues.check_integrity()
        self.blocks.check_integrity()
        holders = {r.request_id for r in self.queues if r.status is not RequestStatus.WAITING}
        if self.blocks.holders != holders:
            odd = sorted(self.blocks.holders ^ holders)
            raise AssertionError(f"block tables and admitted requests differ: {odd}")
        self._proposals.check_integrity(self.queues)
        computing = {r.request_id for r in self.queues if r.computing}
        if computing != frozenset().union(*(step.requests for step in self._under_way.values())):
            raise AssertionError(f"requests in steps and steps differ: {sorted(computing)}")
        doomed = {r.request_id for r in self.queues if r.computing and r.doomed}
        if self.blocks.quarantined != doomed:
            odd = sorted(self.blocks.quarantined ^ doomed)
            raise AssertionError(f"quarantined tables and aborted requests differ: {odd}")
