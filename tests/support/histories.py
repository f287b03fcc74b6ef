"""Random histories of one engine under virtual time: arrivals, hand-offs of both kinds, aborts."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from tests.support.engines import (
    NUM_LAYERS,
    Collected,
    EngineSpec,
    FakeExecutor,
    ManualClock,
    create_engine,
    create_request,
    expected_output,
)
from tests.support.schedulers import CheckedScheduler

from twinflow.protos.errors import EngineError
from twinflow.runtime.kv_progress import KVProgress
from twinflow.runtime.request import Request
from twinflow.runtime.schedulers.base import Scheduler, SchedulerLimits

_STEPS_TO_THE_END = 600


class History:
    """What happens to an engine, drawn from a seed.

    Time passes with every step, by a random amount; where a policy asks to wait, it is that time.

    Args:
        seed: of everything random.
        spec: of the engine.
        order: see `CheckedScheduler`.
        build: makes another policy than the one that is named.
    """

    def __init__(
        self,
        seed: int,
        spec: EngineSpec,
        order: str | None = "fcfs",
        build: Callable[[SchedulerLimits], Scheduler] | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.requests: list[Request] = []
        self.aborted: set[str] = set()
        self.done = Collected()
        self.clock = ManualClock()
        self.kv: dict[str, list[KVProgress]] = {}
        self._spec = spec
        self._order = order
        self._build = build
        self._overtaking = spec.ttft_objective or 0.0
        self.checker: CheckedScheduler | None = None
        self._guessing = random.Random(seed)
        self.engine, self.executor = create_engine(
            spec,
            executor=FakeExecutor(spec.block_size),
            clock=self.clock,
            wrap=self._wrap,
            on_kv=self._hear,
        )
        self.executor.guess = self._guess

    def _guess(self, tokens: Sequence[int], limit: int) -> list[int]:
        """Some of the next tokens, as often as not with a mistake among them."""
        guess = expected_output(tokens, self._guessing.randint(0, limit))
        if guess and self._guessing.random() < 0.5:
            guess[self._guessing.randrange(len(guess))] = 1
        return guess

    def _wrap(self, policy: Scheduler, limits: SchedulerLimits) -> CheckedScheduler:
        made = self._build(limits) if self._build else policy
        self.checker = CheckedScheduler(
            made, limits, order=self._order, overtaking=self._overtaking
        )
        return self.checker

    def _hear(self, progress: KVProgress) -> None:
        self.executor.check_final(progress)
        self.kv.setdefault(progress.request_id, []).append(progress)

    def play(self, steps: int) -> None:
        """Random steps, then whatever it takes until nothing is left; and check the outcome."""
        for _ in range(steps):
            if self.rng.random() < 0.5:
                self._arrive()
            self._meddle(0.3)
            self._step()
        for _ in range(_STEPS_TO_THE_END):
            if not len(self.engine.queues):
                return self._check_outcome()
            self._meddle(1.0)
            self._step()
        raise AssertionError("requests starve")

    def _arrive(self) -> None:
        stem = list(range(self.rng.randrange(20)))
        kinds: list[dict[str, Any]] = [{}, {}, {}, {"hold": True}, {"fetch_from": "peer"}]
        request = create_request(
            [*stem, *(self.rng.randrange(900) for _ in range(1 + self.rng.randrange(12)))],
            max_tokens=1 + self.rng.randrange(8),
            priority=self.rng.randrange(2),
            **self.rng.choice(kinds),
        )
        self.engine.add_request(request)
        self.requests.append(request)

    def _meddle(self, chance: float) -> None:
        """Finish or fail hand-offs, release held blocks, abort somebody."""
        for request in list(self.engine.queues):
            if self.rng.random() >= chance:
                continue
            self.engine.release(request.request_id)
            self.engine.receive_failed(request.request_id, EngineError("lost"))
            if self.rng.random() < 0.02:
                self.engine.abort(request.request_id)
                self.aborted.add(request.request_id)

    def _step(self) -> None:
        progressed = self.engine.step()
        pause = 0.0 if progressed else self.engine.idle_seconds(at_most=1.0)
        self.clock.advance(pause or self.rng.random())
        self.done.take(self.engine)
        self.engine.check_integrity()
        under_way = {r.request_id for r in self.engine.queues if r.wave}
        assert set(self.executor.unfinished) == under_way, "a frontier is lost or left behind"

    def _check_outcome(self) -> None:
        """Everything is given back, and whoever was not aborted got the right tokens."""
        assert self.engine.blocks.num_idle == self.engine.blocks.num_blocks
        if self._spec.admission == "conservative":
            assert self.engine.counters.preemptions == 0
        assert self.executor.admitted == set()
        assert self.executor.unfinished == {}
        for request in self.requests:
            if request.request_id in self.aborted:
                continue
            count = 1 if request.hold else request.params.max_tokens or 0
            expected = expected_output(request.prompt_token_ids, count)
            assert self.done.tokens[request.request_id] == expected
            if request.hold:
                self._check_kv(request)

    def _check_kv(self, request: Request) -> None:
        """Every token that was computed was reported in every layer."""
        progress = self.kv[request.request_id]
        seen = {
            (layer, token)
            for said in progress
            for layer in range(said.first_layer, said.end_layer)
            for token in range(said.token_start, said.token_end)
        }
        first = min(said.token_start for said in progress)
        tokens = range(first, len(request.prompt_token_ids))
        assert seen == {(layer, token) for layer in range(NUM_LAYERS) for token in tokens}
