"""Gateways, workers and the hand-offs between them, under virtual time.

Each replica of a deployment has a gateway: an admission queue, a routing policy and a prefix index,
the objects that serve. A prompt that one worker computes for another one travels over the first
one's link, which sends one prompt after the other; what lies in front of the last part of the
layers travels while those are computed. Messages take no time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from twinflow.cluster.dispatch.admission import AdmissionQueue
from twinflow.cluster.gateway.backend import GenerationSpec
from twinflow.cluster.router.policy import RoutingPolicy
from twinflow.cluster.router.prefix_index import PrefixIndex
from twinflow.cluster.router.snapshot import Route, RouteRequest
from twinflow.cluster.simulator.agenda import Action, Agenda
from twinflow.cluster.simulator.config import SimulationConfig
from twinflow.cluster.simulator.executor import TOKEN_ID
from twinflow.cluster.simulator.measures import Measures, Objective, Progress
from twinflow.cluster.simulator.report import Report, make_report
from twinflow.cluster.simulator.run_ahead import Run
from twinflow.cluster.simulator.traces import Shape
from twinflow.cluster.simulator.worker import SimulatedWorker
from twinflow.cluster.simulator.workload import Workload, prompt_tokens
from twinflow.parallel.partition.control import Decision
from twinflow.protos.errors import InvalidRequest, Overloaded
from twinflow.runtime.lifecycle import EngineOutputs, ReceiveOrder
from twinflow.runtime.outputs import TokenDelta
from twinflow.runtime.request import Request
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.workers.role import Role


class Gateway:
    """One replica.

    Args:
        config: of the deployment.
        workers: of this replica.
        clock: virtual seconds.
    """

    def __init__(
        self,
        config: SimulationConfig,
        workers: Sequence[SimulatedWorker],
        clock: Callable[[], float],
    ) -> None:
        self.queue = AdmissionQueue(config.admission, clock)
        self.workers = {worker.worker_id: worker for worker in workers}
        self._policy = RoutingPolicy()
        self._index = PrefixIndex(config.engine.block_size)
        self._caching = config.engine.enable_prefix_caching

    def dismiss(self, worker_id: str) -> SimulatedWorker:
        """Send a worker nothing more, and forget what it has cached."""
        self._index.forget(worker_id)
        return self.workers.pop(worker_id)

    def route(self, spec: GenerationSpec, now: float) -> Route:
        """Where a sequence goes."""
        names: list[int] = []
        if self._caching:
            names = self._index.names(spec.prompt_token_ids, spec.cache_salt)
        request = RouteRequest(
            num_tokens=len(spec.prompt_token_ids),
            max_new_tokens=spec.params.max_tokens or 0,
            prefix_hits=self._index.hits(names),
        )
        views = [worker.view(now) for worker in self.workers.values()]
        route = self._policy.route(views, request)
        for view in (route.decode, route.prefill):
            if names and view is not None:
                self._index.record(names, view.worker_id)
        return route


@dataclass(slots=True)
class Journey:
    """A sequence on its way.

    Attributes:
        spec: what was asked.
        progress: what was answered.
        gateway: that admitted it.
        decode: worker that decodes it.
        prefill: worker that computes its prompt, if that is another one.
        fetched: tokens of the prompt that `decode` had when it asked for the rest.
    """

    spec: GenerationSpec
    progress: Progress
    gateway: Gateway
    decode: SimulatedWorker
    prefill: SimulatedWorker | None
    fetched: int = 0


class Fleet:
    """A simulation.

    Args:
        config: of the deployment.
        objectives: what a good request keeps to.
        on_decision: told every decision about the division of a device, and whose device it is.

    Attributes:
        workers: of all replicas.
        measures: of everything.
    """

    def __init__(
        self,
        config: SimulationConfig,
        objectives: Sequence[Objective] = (),
        on_decision: Callable[[str, Decision], None] | None = None,
    ) -> None:
        self._config = config
        self._on_decision = on_decision
        self._agenda = Agenda()
        self.measures = Measures(objectives)
        self._gateways = [
            Gateway(config, self._build_workers(index), lambda: self.now)
            for index in range(config.deployment.replicas)
        ]
        self.workers = [worker for each in self._gateways for worker in each.workers.values()]
        self._journeys: dict[str, Journey] = {}
        self._coming = True
        self._preemptions = 0
        self._params: dict[tuple[int, int], SamplingParams] = {}

    def _build_workers(self, replica: int) -> list[SimulatedWorker]:
        return [
            SimulatedWorker(f"{role}-{replica}-{index}", role, self._config, self._agenda, self)
            for role, count in self._config.deployment.pools.items()
            for index in range(count)
        ]

    @property
    def now(self) -> float:
        """Virtual time, in seconds."""
        return self._agenda.now

    def run(self, workload: Workload) -> Measures:
        """Let all requests come and end."""
        self._agenda.run(self._arrivals(workload))
        # Whatever waits now waits for ever.
        self.measures.failed += len(self._journeys)
        return self.measures

    def every(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen again and again, for as long as anything else does."""

        def happen(now: float) -> None:
            action()
            if self._coming or len(self._agenda):
                self._agenda.at(now + seconds, happen)

        self._agenda.at(self.now + seconds, happen)

    def hire(self, worker_id: str, role: Role) -> None:
        """Have another worker, at the first gateway."""
        worker = SimulatedWorker(worker_id, role, self._config, self._agenda, self)
        self._gateways[0].workers[worker_id] = worker
        self.workers.append(worker)

    def dismiss(self, worker_id: str) -> None:
        """Have no more of a worker at the first gateway, which has nothing to do."""
        worker = self._gateways[0].dismiss(worker_id)
        self.workers.remove(worker)
        self._preemptions += worker.engine.counters.preemptions

    def _arrivals(self, workload: Workload) -> Iterator[tuple[float, Action]]:
        for number, (time, shape) in enumerate(workload.arrivals(self._config.seed)):
            tokens = prompt_tokens(shape, workload.block_tokens)
            params = self._params_of(shape, workload.allowance)
            yield time, partial(self._arrive, GenerationSpec(str(number), tokens, params), number)
        self._coming = False

    def _params_of(self, shape: Shape, allowance: int | None) -> SamplingParams:
        """Every simulated token ends the output from the shape's length on, and none before."""
        length = shape.output_tokens
        room = self._config.engine.max_model_len - shape.input_tokens
        most = max(length, min(allowance or 0, room))
        params = self._params.get((length, most))
        if params is None:
            params = self._params[length, most] = SamplingParams(
                max_tokens=most, min_tokens=length, stop_token_ids=(TOKEN_ID,), seed=0
            )
        return params

    def _arrive(self, spec: GenerationSpec, number: int, now: float) -> None:
        self.measures.arrive(now)
        gateway = self._gateways[number % len(self._gateways)]
        try:
            gateway.queue.admit((spec,))
        except Overloaded:
            self.measures.rejected += 1
            return
        route = gateway.route(spec, now)
        self._send(spec, gateway, route, now)

    def _send(self, spec: GenerationSpec, gateway: Gateway, route: Route, now: float) -> None:
        decode = gateway.workers[route.decode.worker_id]
        prefill = gateway.workers[route.prefill.worker_id] if route.prefill else None
        journey = Journey(spec, Progress(now), gateway, decode, prefill)
        self._journeys[spec.request_id] = journey
        tokens = len(spec.prompt_token_ids)
        (prefill or decode).computing.add(spec.request_id, tokens)
        decode.promised.add(spec.request_id, tokens)
        decode.assigned += 1
        request = Request(
            request_id=spec.request_id,
            prompt_token_ids=spec.prompt_token_ids,
            params=spec.params,
            fetch_from=prefill,
        )
        try:
            decode.submit(request, now)
        except InvalidRequest:
            self.measures.failed += 1
            self._forget(journey)

    def fetch(self, worker: SimulatedWorker, order: ReceiveOrder, now: float) -> None:
        """See `WorkerListener.fetch`."""
        journey = self._journeys[order.request.request_id]
        if journey.prefill is None:
            raise ValueError(f"nobody computes the prompt of {order.request.request_id}")
        journey.fetched = order.first_block * self._config.engine.block_size
        held = Request(
            request_id=order.request.request_id,
            prompt_token_ids=journey.spec.prompt_token_ids,
            params=journey.spec.params,
            hold=True,
        )
        journey.prefill.submit(held, now)

    def step_over(
        self, worker: SimulatedWorker, outputs: EngineOutputs, began: float, now: float
    ) -> None:
        """See `WorkerListener.step_over`."""
        for request_id, delta in outputs.deltas:
            journey = self._journeys[request_id]
            if worker is journey.prefill:
                self._hand_over(journey, delta, began, now)
            else:
                self._token(journey, delta, now)
        for request_id, _ in outputs.failures:
            self.measures.failed += 1
            self._forget(self._journeys[request_id])

    def run_over(self, requests: Sequence[Request], run: Run, steps: int) -> None:
        """See `WorkerListener.run_over`."""
        gaps, end, last = self.measures.gaps, run.end(steps), run.last(steps)
        first_end = run.end(1)
        if steps > 1:
            gaps.add_run(run.last(2), last, steps - 1, len(requests))
        for request in requests:
            progress = self._journeys[request.request_id].progress
            # Whoever has just come waited longer for the first of these steps than the others.
            gap = first_end - progress.latest
            gaps.add(gap)
            progress.tokens += steps
            progress.latest = end
            progress.worst_gap = max(progress.worst_gap, gap, last)

    def busy(self, worker: SimulatedWorker, seconds: float, kv_use: float) -> None:
        """See `WorkerListener.busy`."""
        self.measures.busy(worker.role, seconds, kv_use)

    def decided(self, worker: SimulatedWorker, decision: Decision) -> None:
        """See `WorkerListener.decided`."""
        if self._on_decision is not None:
            self._on_decision(worker.worker_id, decision)

    def _hand_over(self, journey: Journey, delta: TokenDelta, began: float, now: float) -> None:
        """A prompt is computed: its first token goes ahead, its KV follows."""
        request_id, prefill = journey.spec.request_id, journey.prefill
        if prefill is None:
            raise ValueError(f"nobody computes the prompt of {request_id}")
        self.measures.kv_transfers += 1
        outputs = journey.decode.first_token(request_id, delta.cached_tokens, now)
        self.step_over(journey.decode, outputs, began, now)
        link = self._config.link
        tokens = len(journey.spec.prompt_token_ids) - journey.fetched
        seconds = tokens * self._config.token_bytes / link.bytes_per_s
        streamed = max(prefill.link_free, began) + seconds
        prefill.link_free = max(streamed, now + seconds / link.units)
        arrived = partial(self._handed_over, request_id, prefill, journey.decode)
        self._agenda.at(prefill.link_free + link.latency_s, arrived)

    def _handed_over(
        self, request_id: str, prefill: SimulatedWorker, decode: SimulatedWorker, now: float
    ) -> None:
        decode.received(request_id, now)
        prefill.release(request_id, now)

    def _token(self, journey: Journey, delta: TokenDelta, now: float) -> None:
        progress, request_id = journey.progress, journey.spec.request_id
        if delta.token_ids and not progress.tokens:
            journey.gateway.queue.answered(journey.spec)
            (journey.prefill or journey.decode).computing.remove(request_id)
            journey.decode.promised.remove(request_id)
        for _ in delta.token_ids:
            self.measures.token(progress, now)
        if delta.finish_reason is not None:
            self.measures.finish(progress)
            self._forget(journey)

    def _forget(self, journey: Journey) -> None:
        request_id = journey.spec.request_id
        del self._journeys[request_id]
        journey.gateway.queue.leave(journey.spec)
        (journey.prefill or journey.decode).computing.remove(request_id)
        journey.decode.promised.remove(request_id)
        journey.decode.assigned -= 1

    def report(self) -> Report:
        """What came of it."""
        controllers = [w.lanes.controller for w in self.workers if w.lanes is not None]
        return make_report(
            self._config,
            self.measures,
            self._preemptions + sum(worker.engine.counters.preemptions for worker in self.workers),
            sum(controller.switches for controller in controllers if controller is not None),
        )

    def check_integrity(self) -> None:
        """Nothing is left anywhere of sequences that are over.

        Raises:
            AssertionError: something is.
        """
        for worker in self.workers:
            worker.engine.check_integrity()
            for backlog in (worker.computing, worker.promised):
                backlog.check_integrity()
                if stray := backlog.request_ids - self._journeys.keys():
                    raise AssertionError(f"{worker.worker_id} still counts {sorted(stray)}")
