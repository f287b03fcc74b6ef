"""What happens to one request: admitted, extended by a token, preempted, received, ended.

Every transition of a request's state is here and keeps queues, blocks, sampling state and outputs
together. When a transition happens is the engine's business, and the scheduler's.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from twinflow.protos.errors import EngineError, TwinflowError
from twinflow.runtime.executor import Executor
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.layer_traffic import LayerTotals, LayerTraffic
from twinflow.runtime.output_history import OutputHistory
from twinflow.runtime.outputs import FinishReason, PhaseTime, SampledToken, TokenDelta
from twinflow.runtime.queues import RequestQueues
from twinflow.runtime.request import Request, RequestStatus, Stopwatch
from twinflow.runtime.speculative.account import SpeculationAccount
from twinflow.runtime.speculative.draft import NOTHING


@dataclass(frozen=True, slots=True)
class ReceiveOrder:
    """Blocks are reserved for a request whose KV another worker shall compute and send.

    Attributes:
        request: whose prompt.
        first_block: blocks of the sequence before this one are here already.
        blocks: the whole block table; `blocks[first_block:]` are to be written.
    """

    request: Request
    first_block: int
    blocks: tuple[int, ...]


@dataclass(slots=True)
class EngineOutputs:
    """What happened since it was last asked for.

    Attributes:
        deltas: (request id, new tokens); the last delta of a request has a finish reason.
        failures: (request id, error) of requests that ended without one.
        receives: orders to receive KV.
    """

    deltas: list[tuple[str, TokenDelta]] = field(default_factory=list)
    failures: list[tuple[str, TwinflowError]] = field(default_factory=list)
    receives: list[ReceiveOrder] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.deltas or self.failures or self.receives)


@dataclass(slots=True)
class EngineCounters:
    """Totals since the engine started; see `EngineSnapshot`."""

    steps: int = 0
    busy_seconds: float = 0.0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    experts: dict[int, LayerTotals] = field(default_factory=dict)
    speculation: SpeculationAccount = field(default_factory=SpeculationAccount)

    def note_experts(self, traffic: Sequence[LayerTraffic]) -> None:
        """Add the traffic of a step."""
        for layer in traffic:
            self.experts[layer.layer] = self.experts.get(layer.layer, LayerTotals()).plus(layer)


class RequestLifecycle:
    """State transitions of the requests of one engine.

    Args:
        executor: keeps the sampling state.
        blocks: keeps the block tables.
        max_model_len: longest sequence.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        executor: Executor,
        blocks: BlockManager,
        *,
        max_model_len: int,
        clock: Callable[[], float],
    ) -> None:
        self._executor = executor
        self._blocks = blocks
        self._max_model_len = max_model_len
        self._clock = clock
        self.queues = RequestQueues()
        self.outputs = EngineOutputs()
        self.counters = EngineCounters()
        self.history = OutputHistory()

    def require(self, request_id: str) -> Request:
        """The live request with this id, which a plan has just named."""
        request = self.queues.get(request_id)
        if request is None:
            raise EngineError(f"the plan names request {request_id}, which is not here")
        return request

    def enqueue(self, request: Request) -> None:
        """Take in a new request; the executor may refuse it."""
        self._executor.admit(request)
        request.arrival = self._clock()
        request.stopwatch = Stopwatch("queue", request.arrival)
        self.queues.add(request)

    def admit(self, requests: Iterable[Request], receiving: Sequence[str]) -> None:
        """Give block tables to waiting requests that a plan admits.

        All tables are opened before any of them grows: growing evicts cached blocks, and the
        plan counts on those that it has matched.
        """
        admitted = [r for r in requests if r.status is RequestStatus.WAITING]
        for request in admitted:
            match = self._blocks.match(request)
            received = request.request_id in receiving
            self._blocks.open(request, match, computed_elsewhere=received)
            request.num_computed = match.num_tokens
            if request.cached_tokens is None:
                # What an earlier attempt generated may be cached too, and is no prompt.
                request.cached_tokens = min(match.num_tokens, len(request.prompt_token_ids))
        for request in admitted:
            if request.request_id in receiving:
                self._order_receive(request)
            else:
                self.queues.move(request, RequestStatus.RUNNING)
                request.stopwatch.enter("prefill", self._clock())

    def _order_receive(self, request: Request) -> None:
        self.queues.move(request, RequestStatus.RECEIVING)
        request.stopwatch.enter("transfer", self._clock())
        self._blocks.grow(request.request_id, request.num_tokens)
        blocks = tuple(self._blocks.blocks(request.request_id))
        first = request.num_computed // self._blocks.block_size
        self.outputs.receives.append(ReceiveOrder(request, first, blocks))

    def extend(self, request: Request, run: Sequence[SampledToken], *, phase: str) -> None:
        """Add tokens, report them, and end the request if one of them ends it.

        Tokens behind that one are as if they had never been sampled. Of the others, all but the
        last were proposed and verified, so that their KV is there; it can be found by others.

        Args:
            request: running or receiving.
            run: at least one token.
            phase: what the request's time goes to from now on.
        """
        taken, reason = self._take(request, run)
        if len(taken) > 1:
            request.num_computed += len(taken) - 1
            self._blocks.publish(request)
        now = request.last_token_at = self._clock()
        if not request.hold:
            # What a held request waits for is another worker's time, and counted there.
            request.stopwatch.enter(phase, now)
        delta = TokenDelta(
            token_ids=tuple([sampled.token_id for sampled in taken]),
            logprobs=tuple([sampled.logprobs for sampled in taken if sampled.logprobs]),
            finish_reason=reason,
            stop_token_id=taken[-1].token_id if reason is FinishReason.STOP else None,
            cached_tokens=request.cached_tokens or 0,
            phases=(
                request.stopwatch.total(now)
                if reason or request.hold
                else request.stopwatch.news(now)
            ),
            speculation=request.speculation.copy() if request.speculation.drafts else None,
        )
        self.outputs.deltas.append((request.request_id, delta))
        if request.hold:
            self.queues.move(request, RequestStatus.HELD)
            return
        self.counters.generation_tokens += len(taken)
        if reason is not None:
            self.close(request)

    def _take(
        self, request: Request, run: Sequence[SampledToken]
    ) -> tuple[list[SampledToken], FinishReason | None]:
        """Append tokens up to the one that ends the request, if one does."""
        taken: list[SampledToken] = []
        for sampled in run:
            taken.append(sampled)
            request.output_token_ids.append(sampled.token_id)
            self._executor.accept(request.request_id, sampled.token_id)
            reason = None if request.hold else self._finish_reason(request, sampled.token_id)
            if reason is not None:
                return taken, reason
        return taken, None

    def _finish_reason(self, request: Request, token_id: int) -> FinishReason | None:
        num_outputs, params = len(request.output_token_ids), request.params
        if num_outputs >= params.min_tokens and token_id in request.ending_token_ids:
            return FinishReason.STOP
        num_tokens = len(request.prompt_token_ids) + num_outputs
        if num_outputs >= (params.max_tokens or 0) or num_tokens >= self._max_model_len:
            return FinishReason.LENGTH
        return None

    def preempt(self, request: Request) -> None:
        """Take a request's blocks; it is computed again, with what it has generated so far."""
        self.counters.preemptions += 1
        self._restart(request, "preempted")

    def _restart(self, request: Request, phase: str) -> None:
        self._blocks.free(request.request_id)
        self._executor.restart(request.request_id)
        request.num_computed = 0
        request.wave = None
        request.draft = NOTHING
        request.fetch_from = None
        request.stopwatch.enter(phase, self._clock())
        self.queues.move(request, RequestStatus.WAITING)

    def fail(self, request: Request, error: TwinflowError) -> None:
        """End a request with an error."""
        self.outputs.failures.append((request.request_id, error))
        self.close(request)

    def close(self, request: Request) -> None:
        """Give everything back; while KV is received or rows are computed, when that is over."""
        if request.status is RequestStatus.RECEIVING or request.computing:
            request.doomed = True
            if request.computing:
                self._blocks.quarantine(request.request_id)
            return
        if request.output_token_ids and not request.hold:
            self.history.record(len(request.output_token_ids))
        self._blocks.free(request.request_id)
        self._executor.forget(request.request_id)
        self.queues.move(request, RequestStatus.FINISHED)

    def first_token_received(
        self,
        request: Request,
        sampled: SampledToken,
        phases: Sequence[PhaseTime],
        cached_tokens: int,
    ) -> None:
        """The worker that computes the prompt has sampled its first token; KV may still come."""
        request.stopwatch.insert(phases, self._clock())
        request.cached_tokens = max(cached_tokens, request.cached_tokens or 0)
        self.extend(request, [sampled], phase="transfer")

    def received(self, request: Request) -> None:
        """Every block arrived and was proved right, and so did the first token."""
        self.queues.move(request, RequestStatus.RUNNING)
        if request.doomed:
            self.close(request)
            return
        request.num_computed = request.num_tokens - 1
        request.stopwatch.enter("first_decode", self._clock())
        self._blocks.publish(request)

    def receive_failed(self, request: Request, error: TwinflowError) -> None:
        """The KV will not come, and nothing writes to the blocks any more: compute it here."""
        self.queues.move(request, RequestStatus.RUNNING)
        if request.doomed:
            self.close(request)
        elif request.probe:
            self.fail(request, error)
        else:
            self._restart(request, "recompute")
