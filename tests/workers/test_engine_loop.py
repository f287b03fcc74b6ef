"""The engine runs on its own thread and nowhere else; the loop wakes it, ends it, outlives it."""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from tests.support.engines import (
    EngineSpec,
    FakeExecutor,
    create_engine,
    create_request,
    expected_output,
)
from tests.support.workers import eventually, within

from twinflow.protos.errors import EngineError, InvalidRequest, Unavailable
from twinflow.runtime.engine import Engine
from twinflow.runtime.executor import Work
from twinflow.runtime.lifecycle import EngineOutputs
from twinflow.runtime.request import Request
from twinflow.runtime.schedulers.base import Scheduler, SchedulerState
from twinflow.runtime.step_plan import StepPlan
from twinflow.workers.engine_loop import EngineLoop


@dataclass
class Heard:
    """What a loop tells the event loop."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    deaths: list[EngineError] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def publish(self, outputs: EngineOutputs) -> None:
        self.threads.add(threading.get_ident())
        for request_id, delta in outputs.deltas:
            self.tokens.setdefault(request_id, []).extend(delta.token_ids)
        self.failures.update(outputs.failures)

    def die(self, error: EngineError) -> None:
        self.threads.add(threading.get_ident())
        self.deaths.append(error)


def loop_of(engine: Engine, heard: Heard, blocked_wait_s: float = 0.1) -> EngineLoop:
    return EngineLoop(
        engine, publish=heard.publish, on_death=heard.die, blocked_wait_s=blocked_wait_s
    )


def adding(request: Request) -> Callable[[Engine], None]:
    return lambda engine: engine.add_request(request)


class CountingEngine:
    """An engine that counts how often it was asked for a step."""

    def __init__(self, engine: Engine) -> None:
        self.steps = 0
        self._engine = engine

    def step(self) -> bool:
        self.steps += 1
        return self._engine.step()

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)


async def test_requests_run_and_their_outputs_arrive_on_the_event_loop() -> None:
    heard = Heard()
    loop = loop_of(create_engine()[0], heard)
    loop.start()
    requests = [create_request(max_tokens=5) for _ in range(6)]
    for request in requests:
        await loop.call(adding(request))
    await eventually(lambda: sum(map(len, heard.tokens.values())) == 30, lambda: heard.tokens)
    for request in requests:
        expected = expected_output(request.prompt_token_ids, 5)
        assert heard.tokens[request.request_id] == expected
    assert heard.threads == {threading.get_ident()}
    assert loop.snapshot.generation_tokens == 30
    assert loop.snapshot.free_blocks == loop.snapshot.total_blocks
    await loop.call(Engine.check_integrity)
    await loop.stop(5.0)
    assert not loop.alive


async def test_commands_run_on_the_engine_thread_and_give_their_result_or_error() -> None:
    loop = loop_of(create_engine()[0], Heard())
    loop.start()
    threads = [await loop.call(lambda engine: threading.get_ident()) for _ in range(3)]
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
    with pytest.raises(InvalidRequest, match="no tokens"):
        await loop.call(adding(create_request([])))
    assert loop.alive
    await loop.stop(5.0)


async def test_an_engine_that_is_blocked_waits_for_a_command() -> None:
    """One request holds all blocks without running: the other is looked at when told, not more."""
    engine, _ = create_engine(EngineSpec(num_blocks=9, max_model_len=32))
    counting = CountingEngine(engine)
    heard = Heard()
    loop = loop_of(counting, heard, blocked_wait_s=3600.0)  # type: ignore[arg-type]
    loop.start()
    holder = create_request(28, hold=True)
    await loop.call(adding(holder))
    await eventually(lambda: holder.request_id in heard.tokens, "the held request")
    waiting = create_request(20, max_tokens=2)
    await loop.call(adding(waiting))
    await eventually(lambda: loop.snapshot.num_waiting == 1, "a waiting request")

    before = counting.steps
    for _ in range(5):
        await loop.call(lambda engine: None)
    assert counting.steps - before <= 6
    assert waiting.request_id not in heard.tokens

    loop.post(lambda engine: engine.release(holder.request_id))
    await eventually(lambda: len(heard.tokens.get(waiting.request_id, ())) == 2, "its tokens")
    await loop.stop(5.0)


async def test_a_blocked_engine_is_looked_at_again_after_a_while() -> None:
    """A policy may change its mind with the time."""
    engine, _ = create_engine(EngineSpec(num_blocks=9, max_model_len=32))
    counting = CountingEngine(engine)
    loop = loop_of(counting, Heard(), blocked_wait_s=0.001)  # type: ignore[arg-type]
    loop.start()
    await loop.call(adding(create_request(28, hold=True)))
    await loop.call(adding(create_request(20)))
    before = counting.steps
    await eventually(lambda: counting.steps > before + 10, "further steps")
    await loop.stop(5.0)


class Patient:
    """A policy that does nothing before a moment."""

    def __init__(self, policy: Scheduler, until: float) -> None:
        self._policy = policy
        self._until = until

    def plan(self, state: SchedulerState, now: float) -> StepPlan:
        if now < self._until:
            return StepPlan(idle_until=self._until)
        return self._policy.plan(state, now)


async def test_a_policy_that_waits_is_asked_again_when_it_wants_to_be() -> None:
    until = time.monotonic() + 0.05
    engine, _ = create_engine(
        clock=time.monotonic, wrap=lambda policy, limits: Patient(policy, until)
    )
    counting, heard = CountingEngine(engine), Heard()
    loop = loop_of(counting, heard, blocked_wait_s=3600.0)  # type: ignore[arg-type]
    loop.start()
    request = create_request(max_tokens=2)
    await loop.call(adding(request))
    await eventually(lambda: len(heard.tokens.get(request.request_id, ())) == 2, "its tokens")
    assert counting.steps <= 6
    await loop.stop(5.0)


async def test_one_failed_step_costs_its_requests_and_nobody_else() -> None:
    poison = create_request(12)

    def fails(work: Work) -> bool:
        return work.request is poison

    heard = Heard()
    loop = loop_of(create_engine(executor=FakeExecutor(4, fail=fails))[0], heard)
    loop.start()
    await loop.call(adding(poison))
    await eventually(lambda: poison.request_id in heard.failures, "the failure")
    good = create_request(12, max_tokens=3)
    await loop.call(adding(good))
    await eventually(lambda: len(heard.tokens.get(good.request_id, ())) == 3, "three tokens")
    assert loop.alive
    assert heard.deaths == []
    await loop.stop(5.0)


async def test_an_engine_that_keeps_failing_dies_and_says_so_once() -> None:
    heard = Heard()
    loop = loop_of(create_engine(executor=FakeExecutor(4, fail=lambda work: True))[0], heard)
    loop.start()
    for _ in range(3):
        request = create_request(12)
        loop.post(adding(request))
        await eventually(
            lambda request=request: request.request_id in heard.failures or heard.deaths,  # type: ignore[misc]
            "a failure",
        )
    await eventually(lambda: heard.deaths, "the death")
    assert len(heard.deaths) == 1
    assert "planted failure" in str(heard.deaths[0])
    assert not loop.alive
    assert loop.error is heard.deaths[0]
    with pytest.raises(Unavailable, match="stopped"):
        await loop.call(Engine.check_integrity)
    loop.post(lambda engine: pytest.fail("a dead engine ran a command"))
    await loop.stop(5.0)


async def test_a_command_that_breaks_its_promise_kills_the_engine_but_not_the_process() -> None:
    heard = Heard()
    loop = loop_of(create_engine()[0], heard)
    loop.start()

    def broken(engine: Engine) -> None:
        raise KeyError("promise")

    waiting = asyncio.create_task(loop.call(lambda engine: loop.post(broken)))
    await waiting
    await eventually(lambda: heard.deaths, "the death")
    assert "KeyError" in str(heard.deaths[0])
    await loop.stop(5.0)


async def test_calls_behind_the_one_that_killed_the_engine_are_refused() -> None:
    loop = loop_of(create_engine()[0], Heard())
    loop.start()
    entered, go_on = threading.Event(), threading.Event()

    def fail_later(engine: Engine) -> None:
        entered.set()
        go_on.wait(20.0)
        raise KeyError("promise")

    loop.post(fail_later)
    await asyncio.to_thread(entered.wait, 20.0)
    call = asyncio.create_task(loop.call(lambda engine: "too late"))
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(Unavailable, match="stopped"):
        await within(call, "the refusal")
    await loop.stop(5.0)


async def test_stopping_twice_is_fine() -> None:
    loop = loop_of(create_engine()[0], Heard())
    loop.start()
    await loop.stop(5.0)
    await loop.stop(5.0)
    assert not loop.alive
