"""An engine with two lanes, step by step: who is scheduled where, and what becomes of the blocks
of requests that end while their rows are being computed."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
from tests.support.lanes import ScriptedLanes, check_conserved
from tests.support.schedulers import LinearTimes

from twinflow.parallel.partition.control import Mode
from twinflow.protos.errors import EngineError, WorkerLost
from twinflow.runtime.engine import Engine
from twinflow.runtime.executor import Work
from twinflow.runtime.kv_progress import KVProgress
from twinflow.runtime.request import Request, RequestStatus

POLICIES = [
    ("chunked", "fcfs"), ("chunked", "spf"), ("layered", "fcfs"), ("layered", "spf"),
    ("laps", "fcfs"), ("laps", "spf"),
]  # fmt: skip


def scripted(engine: Engine) -> ScriptedLanes:
    lanes = engine._lanes
    assert isinstance(lanes, ScriptedLanes)
    return lanes


def laned(spec: EngineSpec | None = None, seed: int = 0) -> tuple[Engine, ScriptedLanes]:
    engine, _ = create_engine(spec, lanes=lambda fake: ScriptedLanes(fake, seed, 0.0))
    return engine, scripted(engine)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    policy=st.sampled_from(POLICIES),
    num_blocks=st.integers(13, 40),  # 12 of 4 tokens hold the longest request, of 45
    budget=st.integers(8, 24),
)
def test_any_mix_gives_the_same_tokens_and_gives_everything_back(
    seed: int, policy: tuple[str, str], num_blocks: int, budget: int
) -> None:
    source, clock = random.Random(seed), ManualClock()
    spec = EngineSpec(
        num_blocks=num_blocks,
        max_num_batched_tokens=budget,
        scheduler=policy[0],
        prefill_order=policy[1],
        tbt_objective=source.choice([None, 2.0]),
        times=LinearTimes(step=0.0, layer=0.0, row=0.1),
    )
    engine, executor = create_engine(
        spec, clock=clock, lanes=lambda fake: ScriptedLanes(fake, seed + 1)
    )
    stem = [source.randrange(997) for _ in range(24)]
    waiting, aborted, done = [], set(), Collected()
    for _ in range(source.randint(2, 12)):
        shared = source.randint(0, 24)
        tail = [source.randrange(997) for _ in range(source.randint(1, 12))]
        waiting.append(create_request([*stem[:shared], *tail], source.randint(1, 9)))
    submitted: list[Request] = []
    for _ in range(3000):
        if not (waiting or engine.runnable):
            break
        while waiting and source.random() < 0.4:
            submitted.append(waiting.pop())
            engine.add_request(submitted[-1])
        if submitted and source.random() < 0.08:
            victim = source.choice(submitted).request_id
            engine.abort(victim)
            aborted.add(victim)
            engine.check_integrity()
        engine.step()
        done.take(engine)
        clock.advance(source.random() * 0.1)
        engine.check_integrity()
        check_conserved(engine)
    assert not (waiting or engine.runnable)
    assert done.failures == {}
    for request in submitted:
        expected = expected_output(request.prompt_token_ids, request.params.max_tokens or 0)
        found = done.tokens.get(request.request_id, [])
        assert found == expected[: len(found)]
        assert request.request_id in aborted or found == expected
    assert engine.blocks.num_idle == engine.blocks.num_blocks
    assert (executor.admitted, executor.unfinished) == (set(), {})


def test_prompts_and_decoding_overlap() -> None:
    engine, lanes = laned(EngineSpec(max_num_batched_tokens=8))
    first, second = create_request(4, max_tokens=30), create_request(40, max_tokens=2)
    engine.add_request(first)
    engine.step()
    engine.add_request(second)
    while engine.runnable:
        engine.step()
        for lane, step in lanes.under_way.items():
            kinds = {item.group.token_count for item in step.work}
            assert lane is Mode.PREFILL or kinds == {1}
    assert lanes.both > 0


def test_requests_in_a_step_are_never_preempted() -> None:
    """Memory for one prompt: who decodes beside it makes room among themselves."""
    engine, lanes = laned(EngineSpec(num_blocks=14, block_size=4, max_num_batched_tokens=8), seed=5)
    requests = [create_request(9, max_tokens=24) for _ in range(3)]
    done = Collected()
    for request in requests:
        engine.add_request(request)
    while engine.runnable:
        before = dict(lanes.under_way)
        engine.step()
        done.take(engine)
        engine.check_integrity()
        for lane, step in lanes.under_way.items():
            if before.get(lane) is step:  # it was under way while others were preempted
                assert all(item.request.status is RequestStatus.RUNNING for item in step.work)
    assert engine.counters.preemptions > 0
    for request in requests:
        assert done.tokens[request.request_id] == expected_output(request.prompt_token_ids, 24)


class TestQuarantine:
    """Blocks of requests that are aborted in the middle of a step."""

    def begun(self) -> tuple[Engine, ScriptedLanes, Request]:
        """An engine with a prompt under way, in 10 of 15 blocks."""
        spec = EngineSpec(num_blocks=16, block_size=4, max_num_batched_tokens=64, max_num_seqs=4)
        engine, _ = create_engine(spec, lanes=lambda fake: ScriptedLanes(fake, 0, 1.0))
        request = create_request(40, max_tokens=3)
        engine.add_request(request)
        engine.step()
        return engine, scripted(engine), request

    def test_nobody_gets_them_before_the_step_is_over(self) -> None:
        engine, lanes, victim = self.begun()
        engine.abort(victim.request_id)
        assert (engine.blocks.num_quarantined, engine.blocks.num_idle) == (10, 5)
        other = create_request(24, max_tokens=1)  # 6 blocks
        engine.add_request(other)
        engine.step()
        assert lanes.requests == {victim.request_id}
        lanes._interruptions = 0.0
        engine.step()
        assert (engine.blocks.num_quarantined, engine.blocks.num_idle) == (0, 15)
        engine.step()
        outputs = engine.take_outputs()
        assert [name for name, _ in outputs.deltas] == [other.request_id]
        assert not outputs.failures

    def test_blocks_that_others_hold_too_are_not_in_quarantine(self) -> None:
        engine, _ = create_engine(EngineSpec(block_size=4, max_num_batched_tokens=64))
        prompt = list(range(16))
        engine.add_request(create_request(prompt, max_tokens=1))
        engine.step()
        engine.take_outputs()
        lanes = ScriptedLanes(engine.executor, 0, 1.0)
        engine._lanes = lanes
        twins = [create_request([*prompt, 20 + index], max_tokens=4) for index in range(2)]
        for twin in twins:
            engine.add_request(twin)
        engine.step()
        assert lanes.requests == {twin.request_id for twin in twins}
        engine.abort(twins[0].request_id)
        assert engine.blocks.num_quarantined == 1
        check_conserved(engine)
        engine.abort(twins[1].request_id)
        assert engine.blocks.num_quarantined == 6
        check_conserved(engine)

    def test_a_failing_step_says_nothing_about_the_aborted(self) -> None:
        spec = EngineSpec(num_blocks=16, block_size=4, max_num_batched_tokens=64)
        failing = FakeExecutor(4, fail=lambda work: True)
        engine, _ = create_engine(
            spec, executor=failing, lanes=lambda fake: ScriptedLanes(fake, 0, 0.0)
        )
        lanes = scripted(engine)
        requests = [create_request(8), create_request(8)]
        for request in requests:
            engine.add_request(request)
        lanes._interruptions = 1.0
        engine.step()
        engine.abort(requests[0].request_id)
        engine.abort(requests[0].request_id)
        lanes._interruptions = 0.0
        engine.step()
        assert [name for name, _ in engine.take_outputs().failures] == [requests[1].request_id]
        assert engine.blocks.num_idle == engine.blocks.num_blocks
        engine.check_integrity()

    def test_a_prompt_for_another_worker_is_reported_to_the_end(self) -> None:
        """Layers of an aborted prompt still become final; whoever waited for them is gone."""
        seen: list[KVProgress] = []
        spec = EngineSpec(block_size=4, max_num_batched_tokens=64)
        engine, executor = create_engine(
            spec, on_kv=seen.append, lanes=lambda fake: ScriptedLanes(fake, 0, 1.0)
        )
        request = create_request(10, max_tokens=1, hold=True)
        engine.add_request(request)
        engine.step()
        engine.abort(request.request_id)
        scripted(engine)._interruptions = 0.0
        engine.step()
        assert [progress.end_layer for progress in seen] == [NUM_LAYERS // 2, NUM_LAYERS]
        executor.check_final(seen[-1])
        assert len(engine.queues) == 0
        assert not engine.take_outputs()


def test_held_prompts_are_sent_from_the_prefill_lane() -> None:
    seen: list[KVProgress] = []

    def on_kv(progress: KVProgress) -> None:
        executor.check_final(progress)
        seen.append(progress)

    spec = EngineSpec(block_size=4, max_num_batched_tokens=8)
    engine, executor = create_engine(spec, on_kv=on_kv, lanes=lambda fake: ScriptedLanes(fake, 3))
    decoding, held = create_request(4, max_tokens=20), create_request(30, max_tokens=1, hold=True)
    engine.add_request(decoding)
    engine.add_request(held)
    while engine.runnable:
        engine.step()
        engine.check_integrity()
    assert seen[-1].token_end == 30
    assert held.status is RequestStatus.HELD
    engine.release(held.request_id)
    assert engine.blocks.num_idle == engine.blocks.num_blocks


def test_failing_steps_of_both_lanes_end_the_engine() -> None:
    broken = False

    def fail(work: Work) -> bool:
        return broken

    engine, _ = create_engine(
        executor=FakeExecutor(4, fail=fail), lanes=lambda fake: ScriptedLanes(fake, 0, 0.0)
    )
    for _ in range(4):
        engine.add_request(create_request(8, max_tokens=9))
        engine.step()
    broken = True
    with pytest.raises(EngineError, match="3 times in a row"):
        for _ in range(4):
            engine.add_request(create_request(8, max_tokens=9))
            engine.step()


def test_the_loss_of_a_process_is_not_a_failed_step() -> None:
    class Lost(FakeExecutor):
        def execute(self, work: object, on_layers: object) -> list[object]:  # type: ignore[override]
            raise WorkerLost("rank 1 is gone")

    engine, _ = create_engine(executor=Lost(4), lanes=lambda fake: ScriptedLanes(fake, 0, 0.0))
    engine.add_request(create_request(8))
    with pytest.raises(WorkerLost, match="rank 1"):
        engine.step()
