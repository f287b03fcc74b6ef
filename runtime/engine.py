"""The engine: schedule, run, update.

One plain object, driven from one thread, that takes requests in and gives tokens out. It knows
no clients, no network and no other worker: whoever drives it carries its orders to receive KV,
and reports back. A failure of one request, or of one step, never takes the engine down.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twinflow.protos.errors import (
    ContextLengthExceeded,
    EngineError,
    InvalidRequest,
    TwinflowError,
    WorkerLost,
)
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.executor import Executor, LayersDone, Work
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.layer_traffic import LayerTraffic
from twinflow.runtime.lifecycle import EngineCounters, EngineOutputs, RequestLifecycle
from twinflow.runtime.outputs import NumericalFault, PhaseTime, SampledToken
from twinflow.runtime.queues import RequestQueues
from twinflow.runtime.request import Request, RequestStatus, Wave
from twinflow.runtime.schedulers.base import Scheduler, SchedulerState
from twinflow.runtime.step_plan import RowGroup, StepPlan


@dataclass(frozen=True, slots=True)
class KVProgress:
    """KV of a held request is final in some layers and can be sent while others are computed.

    Attributes:
        request_id: whose.
        first_layer: first layer of the range.
        end_layer: one behind the last layer.
        token_start: first token that this step computed.
        token_end: one behind the last.
        blocks: the whole block table.
    """

    request_id: str
    first_layer: int
    end_layer: int
    token_start: int
    token_end: int
    blocks: Sequence[int]


class Engine:
    """Continuous batching over one executor.

    Args:
        config: limits.
        executor: computes.
        blocks: accounts for the KV memory.
        scheduler: decides.
        num_layers: layers of the model.
        clock: seconds, monotonic; only durations are ever used.
        on_kv: told, from inside a step, about every finished layer range of held requests.

    Attributes:
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
        on_kv: Callable[[KVProgress], None] | None = None,
    ) -> None:
        self._num_layers = num_layers
        self._config = config
        self._executor = executor
        self._scheduler = scheduler
        self._clock = clock
        self._on_kv = on_kv
        self._failed_steps = 0
        self._idle_until: float | None = None
        self._life = RequestLifecycle(
            executor, blocks, max_model_len=config.max_model_len, clock=clock
        )
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
        """End a request at once, silently; unknown ids are fine: it may just have finished."""
        request = self.queues.get(request_id)
        if request is not None:
            self._life.close(request)

    def take_outputs(self) -> EngineOutputs:
        """Everything that happened since the last call."""
        outputs, self._life.outputs = self._life.outputs, EngineOutputs()
        return outputs

    def step(self) -> bool:
        """Schedule, run, update. Returns False if nothing could be done."""
        plan = self._schedule()
        work = self._work(plan)
        if work:
            self._update(work, self._run(work), plan.layer_groups)
        return bool(plan.row_groups or plan.receive or plan.preempted)

    def _schedule(self) -> StepPlan:
        queues = self.queues
        state = SchedulerState(
            running=queues.running,
            waiting=queues.waiting,
            num_parked=queues.num_parked,
            blocks=self.blocks,
            receiving=queues.receiving,
            history=self._life.history,
        )
        plan = self._scheduler.plan(state, self._clock())
        self._idle_until = plan.idle_until
        for request_id in plan.preempted:
            self._life.preempt(self._life.require(request_id))
        ids = (*plan.receive, *(group.request_id for group in plan.row_groups))
        self._life.admit(map(self._life.require, ids), plan.receive)
        return plan

    def _work(self, plan: StepPlan) -> list[Work]:
        work: list[Work] = []
        for group in plan.row_groups:
            request = self._life.require(group.request_id)
            self.blocks.grow(request.request_id, request.num_tokens)
            work.append(Work(request, group, self.blocks.blocks(request.request_id)))
        return work

    def _run(self, work: Sequence[Work]) -> Sequence[SampledToken | NumericalFault]:
        """Execute; if the whole step fails, every request in it does, and nobody else.

        Raises:
            EngineError: too many steps in a row have failed.
            WorkerLost: another process that takes part in steps is gone.
        """
        self.counters.steps += 1
        try:
            results = self._executor.execute(work, self._kv_listener(work))
        except WorkerLost:
            raise  # not this step alone: nothing can be computed here any more
        except Exception as error:  # the fence between a step and the engine
            self._failed_steps += 1
            reason = f"the step failed with {type(error).__name__}: {error}"
            if self._failed_steps >= self._config.max_step_failures:
                raise EngineError(f"{self._failed_steps} times in a row, {reason}") from error
            for item in work:
                self._life.fail(item.request, EngineError(reason))
            return ()
        self._failed_steps = 0
        self.traffic = tuple(self._executor.take_traffic())
        self.counters.note_experts(self.traffic)
        return results

    def _kv_listener(self, work: Sequence[Work]) -> LayersDone | None:
        on_kv, held = self._on_kv, [item for item in work if item.request.hold]
        if on_kv is None or not held:
            return None

        def on_layers(first: int, end: int) -> None:
            for item in held:
                if not item.group.crosses(end):
                    continue
                span = (item.group.token_start, item.group.token_end)
                on_kv(KVProgress(item.request.request_id, first, end, *span, item.blocks))

        return on_layers

    def _update(
        self,
        work: Sequence[Work],
        results: Sequence[SampledToken | NumericalFault],
        layer_groups: int,
    ) -> None:
        """Account for the computed rows and append the sampled tokens."""
        live = [item for item in work if item.request.status is RequestStatus.RUNNING]
        for item in live:
            self._advance(item.request, item.group, layer_groups)
        sampling = [item.request for item in live if item.group.samples]
        for request, result in zip(sampling, results, strict=True):
            if isinstance(result, NumericalFault):
                self._life.fail(request, EngineError(str(result)))
            else:
                self._life.append(request, result, phase="decode")

    def _advance(self, request: Request, group: RowGroup, layer_groups: int) -> None:
        """Tokens count as computed, and can be found by others, once they crossed all layers."""
        if group.layer_end < self._num_layers:
            groups = request.wave.groups if request.wave else layer_groups
            span = (group.token_start, group.token_count)
            request.wave = Wave(*span, group.layer_end, groups)
            return
        request.wave = None
        request.num_computed += group.token_count
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
