"""A simulated worker: a real engine over an executor that takes virtual time.

Between two events a worker is idle, in a step, or in a run of steps that nothing disturbs. With two
lanes each lane is in a step of its own. What a step brings is told when the step is over; the
engine's own books are one step ahead until then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from msgspec.structs import replace

from twinflow.cluster.dispatch.backlog import Backlog
from twinflow.cluster.router.snapshot import WorkerView
from twinflow.cluster.simulator.agenda import Agenda
from twinflow.cluster.simulator.config import SimulationConfig
from twinflow.cluster.simulator.executor import VirtualClock, VirtualExecutor
from twinflow.cluster.simulator.lanes import LaneDevice, Lanes, LaneScheduler, LaneStep
from twinflow.cluster.simulator.run_ahead import Run, advance, growth, steps_ahead
from twinflow.parallel.partition.control import Decision, Mode
from twinflow.runtime.config import EngineConfig
from twinflow.runtime.cost.base import StepLoad
from twinflow.runtime.cost.lanes import Lane
from twinflow.runtime.engine import Engine
from twinflow.runtime.executor import Work
from twinflow.runtime.kv.block_manager import BlockManager
from twinflow.runtime.lanes.view import decode_load, decodes
from twinflow.runtime.lifecycle import EngineOutputs, ReceiveOrder
from twinflow.runtime.outputs import SampledToken
from twinflow.runtime.request import Request
from twinflow.runtime.schedulers import create_scheduler
from twinflow.runtime.schedulers.setup import SchedulerSetup
from twinflow.runtime.snapshot import EngineSnapshot, take_snapshot
from twinflow.workers.role import Role

# A policy that waits for nothing in particular is asked again after this.
_IDLE_S = 1.0


class WorkerListener(Protocol):
    """Hears what a worker does."""

    def fetch(self, worker: "SimulatedWorker", order: ReceiveOrder, now: float) -> None:
        """Blocks are reserved; another worker shall compute a prompt."""
        ...

    def step_over(
        self, worker: "SimulatedWorker", outputs: EngineOutputs, began: float, now: float
    ) -> None:
        """A step has brought something."""
        ...

    def run_over(self, requests: Sequence[Request], run: Run, steps: int) -> None:
        """Each of these requests has got a token in each of so many steps of a run."""
        ...

    def busy(self, worker: "SimulatedWorker", seconds: float, kv_use: float) -> None:
        """The worker's whole device was in use for so long, and that part of its KV memory."""
        ...

    def decided(self, worker: "SimulatedWorker", decision: Decision) -> None:
        """The worker's device is divided so from now on."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Busy:
    """A run that is going on, the requests in it, and after how many steps it ends."""

    run: Run
    requests: Sequence[Request]
    steps: int

    def steps_until(self, now: float) -> int:
        """Steps that have begun by now."""
        return min(self.run.steps_until(now), self.steps)


class SimulatedWorker:
    """One worker.

    Args:
        worker_id: unique in its deployment.
        role: which flow it is meant for.
        config: of the deployment.
        agenda: where its events are.
        listener: hears what it does.

    Attributes:
        worker_id: see above.
        role: see above.
        engine: the engine.
        computing: prompts that were sent here to be computed and have brought no token.
        promised: sequences that were sent here to be decoded and have brought no token.
        leaving: it is sent nothing more.
        assigned: sequences that were sent here to be decoded and are not over.
        link_free: when its link has sent what it was given.
    """

    def __init__(
        self,
        worker_id: str,
        role: Role,
        config: SimulationConfig,
        agenda: Agenda,
        listener: WorkerListener,
    ) -> None:
        self.worker_id = worker_id
        self.role: Role = role
        self.computing, self.promised = Backlog(), Backlog()
        self.assigned = 0
        self.leaving = False
        self.link_free = 0.0
        self._config = config
        self._agenda = agenda
        self._listener = listener
        self._clock = VirtualClock()
        own = config.engine_of(role)
        setup = SchedulerSetup.of(own, config.num_layers, config.times.times)
        self._scheduler = LaneScheduler(create_scheduler(own.scheduler, setup))
        executor = VirtualExecutor(self._clock, self._seconds)
        self.engine = _engine(own, config.num_layers, self._scheduler, executor, self._clock)
        self._lanes: Lanes | None = None
        if config.partition is not None and role == "mixed":
            device = LaneDevice(config.partition, config.times, config.num_layers)
            self._lanes = Lanes(device, self.engine, partial(listener.decided, self))
        self._steps: set[Mode] = set()
        # When each lane's step ends as things are, and who is told how long it used the device.
        self._ends: dict[Mode, float] = {}
        self._after: dict[Mode, Callable[[float, float], None]] = {}
        self._run: _Busy | None = None
        self._waits_since = -1.0
        self._kv_use = 0.0
        self._roused = False
        self._report: tuple[float, EngineSnapshot] | None = None
        self._view: tuple[EngineSnapshot, tuple[int, int, int], WorkerView] | None = None

    @property
    def lanes(self) -> Lanes | None:
        """The lanes, if there are two."""
        return self._lanes

    def assign(self, role: Role, *, leaving: bool) -> None:
        """Say what the worker is used for from now on."""
        if (role, leaving) != (self.role, self.leaving):
            self.role, self.leaving, self._view = role, leaving, None

    def report(self) -> EngineSnapshot:
        """Its load and totals now."""
        return self._snapshot(self._agenda.now)

    def _snapshot(self, now: float) -> EngineSnapshot:
        snapshot, busy = take_snapshot(self.engine), self._run
        if busy is None:
            return snapshot
        # The engine stays where the run began until it is over.
        steps = busy.steps_until(now)
        return replace(
            snapshot,
            free_blocks=snapshot.free_blocks - growth(busy.requests, self.engine.blocks, steps),
            steps=snapshot.steps + steps,
            busy_seconds=snapshot.busy_seconds + busy.run.end(steps) - busy.run.start,
            generation_tokens=snapshot.generation_tokens + steps * len(busy.requests),
        )

    def view(self, now: float) -> WorkerView:
        """The worker as its gateway knows it."""
        if self._report is None or now - self._report[0] >= self._config.report_s:
            self._report = (now, self._snapshot(now))
        stats = self._report[1]
        sent = (self.assigned, self.computing.num_tokens, self.promised.num_tokens)
        if self._view is None or self._view[0] is not stats or self._view[1] != sent:
            # Kept, because a gateway looks at all its workers for every request.
            self._view = (stats, sent, self._build_view(stats))
        return self._view[2]

    def _build_view(self, stats: EngineSnapshot) -> WorkerView:
        return WorkerView(
            worker_id=self.worker_id,
            role=self.role,
            draining=self.leaving,
            block_size=self._config.engine.block_size,
            free_blocks=stats.free_blocks,
            num_requests=stats.num_running + stats.num_waiting + stats.num_receiving,
            queued_tokens=stats.waiting_tokens,
            assigned_requests=self.assigned,
            assigned_tokens=self.computing.num_tokens,
            promised_tokens=self.promised.num_tokens,
        )

    def submit(self, request: Request, now: float) -> None:
        """Take in a request."""
        self._clock.now = now
        self.engine.add_request(request)
        if not self._roused:
            # After everything else that comes at this moment, so that it is seen together.
            self._roused = True
            self._agenda.at(now, self._rouse)

    def _rouse(self, now: float) -> None:
        self._roused = False
        self.wake(now)

    def first_token(self, request_id: str, cached_tokens: int, now: float) -> EngineOutputs:
        """The first token of a prompt that another worker computes has come; what that brings."""
        self._clock.now = now
        self.engine.receive_first_token(request_id, SampledToken(0), (), cached_tokens)
        return self.engine.take_outputs()

    def received(self, request_id: str, now: float) -> None:
        """The KV of that prompt is here."""
        self._clock.now = now
        self.engine.receive_done(request_id)
        self.wake(now)

    def release(self, request_id: str, now: float) -> None:
        """The KV of a prompt that was computed here for another worker is there."""
        self._clock.now = now
        self.engine.release(request_id)
        self.wake(now)

    def wake(self, now: float) -> None:
        """Something has happened that may change what can be done."""
        if self._lanes is None:
            if self._run is not None:
                self._cut(self._run, now)
            elif not self._steps:
                self._step(None, now)
            return
        if self._run is not None:
            self._part(self._lanes, self._run, now)
        # Prompts first: a decode step that begins with them knows what it shares the device with.
        for lane in (Mode.PREFILL, Mode.DECODE):
            if lane not in self._steps and self._run is None:
                self._step(lane, now)
        self._schedule_lanes(self._lanes, now)

    def _step(self, lane: Mode | None, now: float) -> None:
        """Let the engine take steps until one of them takes time or nothing can be done."""
        while True:
            self._clock.now = now
            self._scheduler.lane = lane
            self._scheduler.elsewhere = self._elsewhere(lane)
            progressed = self.engine.step()
            outputs = self.engine.take_outputs()
            for order in outputs.receives:
                self._listener.fetch(self, order, now)
            outputs.receives = []
            end = self._clock.now
            if end > now:
                self._steps.add(lane or Mode.DECODE)
                if lane is None:
                    self._agenda.at(end, partial(self._whole_over, outputs, now))
                else:
                    self._after[lane] = partial(self._step_over, outputs, now)
                return
            if outputs:
                self._listener.step_over(self, outputs, now, now)
            if not progressed:
                self._wait(now)
                return

    def _wait(self, now: float) -> None:
        """Ask again later if the policy wants to be asked at a certain time."""
        pause = self.engine.idle_seconds(_IDLE_S)
        if pause < _IDLE_S and self._waits_since != now:
            self._waits_since = now
            self._agenda.at(now + max(pause, 1e-6), self._ask_again)

    def _ask_again(self, now: float) -> None:
        if not self._steps and self._run is None:
            self.wake(now)

    def _whole_over(self, outputs: EngineOutputs, began: float, now: float) -> None:
        self._steps.discard(Mode.DECODE)
        self._step_over(outputs, began, now - began, now)
        self._go_on(now)

    def _schedule_lanes(self, lanes: Lanes, now: float) -> None:
        """Expect the ends of the lanes' steps, as far as they are not expected as they are."""
        for lane, step in lanes.steps.items():
            end = max(step.end, now)
            if self._ends.get(lane) != end:
                self._ends[lane] = end
                self._agenda.at(end, partial(self._lane_over, lanes, lane, step))

    def _lane_over(self, lanes: Lanes, lane: Mode, step: LaneStep, now: float) -> None:
        if lanes.steps.get(lane) is not step or self._ends[lane] != now:
            return  # the other lane has changed when it ends
        self._steps.discard(lane)
        del self._ends[lane]
        self._after.pop(lane)(lanes.end(lane, now).used, now)
        self._go_on(now)

    def _step_over(self, outputs: EngineOutputs, began: float, used: float, now: float) -> None:
        self._listener.busy(self, used, self._kv_use)
        self._listener.step_over(self, outputs, began, now)

    def _go_on(self, now: float) -> None:
        if not self._steps and self._run is None and self._start_run(now):
            return
        self.wake(now)

    def _seconds(self, load: StepLoad, work: Sequence[Work]) -> float:
        self._note_kv()
        lane = self._scheduler.lane
        if self._lanes is not None and lane is not None:
            requests = frozenset(item.request.request_id for item in work)
            return self._lanes.begin(lane, load, requests, self._clock.now)
        return self._config.times.seconds(Lane(load, 1.0))

    def _elsewhere(self, lane: Mode | None) -> frozenset[str]:
        if self._lanes is None or lane is None:
            return frozenset()
        return frozenset().union(
            *(step.requests for other, step in self._lanes.steps.items() if other is not lane)
        )

    def _start_run(self, now: float) -> bool:
        """Take several steps at once if they will all be the same; False if not."""
        running, waiting = self.engine.queues.running, self.engine.queues.waiting
        full = len(self.engine.queues) - len(waiting) >= self.engine.config.max_num_seqs
        config = self._config
        if not config.run_ahead or not running:
            return False
        if len(running) > self.engine.config.max_num_batched_tokens:
            return False
        if (waiting and not full) or not all(map(decodes, running)):
            return False
        steps = steps_ahead(running, self.engine.blocks, config.engine.max_model_len)
        if steps < 2:
            return False
        share = self._run_share
        lanes = [Lane(decode_load(running, config.num_layers, n), share) for n in (0, steps - 1)]
        first, last = map(config.times.seconds, lanes)
        self._note_kv()
        run = Run(now, first, (last - first) / (steps - 1), steps)
        self._run = _Busy(run, tuple(running), steps)
        self._schedule_end(self._run)
        return True

    def _note_kv(self) -> None:
        """Keep what is in use of the KV memory: within a step, before anything is given back."""
        blocks = self.engine.blocks
        self._kv_use = 1.0 - blocks.num_idle / blocks.num_blocks

    @property
    def _run_share(self) -> float:
        return 1.0 if self._lanes is None else self._lanes.share_alone

    def _cut(self, busy: _Busy, now: float) -> None:
        """End a run with the step in which something was noticed."""
        steps = busy.steps_until(now)
        if steps < busy.steps:
            self._run = _Busy(busy.run, busy.requests, steps)
            self._schedule_end(self._run)

    def _part(self, lanes: Lanes, busy: _Busy, now: float) -> None:
        """Turn what is left of a run's present step into a step of the decode lane.

        The engine is one step ahead, as it is in every step.
        """
        self._run = None
        run, requests = busy.run, busy.requests
        step = busy.steps_until(now)
        begins = run.end(step - 1)
        load = decode_load(requests, self._config.num_layers, step - 1)
        self._advance(busy, step)
        if step > 1:
            self._tell_run(busy, step - 1)
        lanes.resume(load, frozenset(request.request_id for request in requests), begins)
        self._steps.add(Mode.DECODE)
        self._after[Mode.DECODE] = partial(self._part_over, requests, begins)

    def _part_over(
        self, requests: Sequence[Request], began: float, used: float, now: float
    ) -> None:
        self._tell_run(_Busy(Run(began, now - began, 0.0, 1), requests, 1), 1, used)

    def _schedule_end(self, busy: _Busy) -> None:
        self._agenda.at(busy.run.end(busy.steps), partial(self._run_over, busy))

    def _run_over(self, busy: _Busy, now: float) -> None:
        if self._run is not busy:
            return  # it was cut short, and is over already
        self._run = None
        self._advance(busy, busy.steps)
        self._tell_run(busy, busy.steps)
        self.wake(now)

    def _advance(self, busy: _Busy, steps: int) -> None:
        end, counters = busy.run.end(steps), self.engine.counters
        advance(busy.requests, self.engine.blocks, steps, end)
        counters.steps += steps
        counters.busy_seconds += end - busy.run.start
        counters.generation_tokens += steps * len(busy.requests)

    def _tell_run(self, busy: _Busy, steps: int, used: float | None = None) -> None:
        """So many steps are over; they used the device for so long, or as a run does."""
        if used is None:
            used = self._run_share * (busy.run.end(steps) - busy.run.start)
        begun = self._kv_use
        self._note_kv()
        self._listener.busy(self, used, (begun + self._kv_use) / 2)
        self._listener.run_over(busy.requests, busy.run, steps)


def _engine(
    config: EngineConfig,
    num_layers: int,
    scheduler: LaneScheduler,
    executor: VirtualExecutor,
    clock: VirtualClock,
) -> Engine:
    blocks = BlockManager(
        config.num_blocks,
        config.block_size,
        model_fingerprint="",
        layout_digest="",
        enable_prefix_caching=config.enable_prefix_caching,
    )
    return Engine(config, executor, blocks, scheduler, num_layers=num_layers, clock=clock)
