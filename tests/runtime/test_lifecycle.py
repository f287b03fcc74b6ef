"""Transitions of requests that the engine's own tests do not reach."""

from typing import Any

import pytest
from tests.support.engines import (
    Collected,
    EngineSpec,
    ManualClock,
    create_engine,
    create_request,
    expected_output,
    run,
)

from twinflow.protos.errors import EngineError
from twinflow.runtime.outputs import FinishReason, PhaseTime, SampledToken, TokenLogprobs
from twinflow.runtime.request import RequestStatus


class TestContinuation:
    """A request whose first tokens another worker has generated, and was lost with."""

    def test_goes_on_behind_the_last_token(self) -> None:
        engine, executor = create_engine()
        request = create_request(prompt=10, max_tokens=8)
        tokens = expected_output(request.prompt_token_ids, 8)
        request.output_token_ids = tokens[:5]
        engine.add_request(request)
        done = run(engine)
        assert done.tokens[request.request_id] == tokens[5:]
        assert done.last[request.request_id].finish_reason is FinishReason.LENGTH
        assert executor.batches[0] == [(request.request_id, 0, 15)]

    def test_output_in_the_cache_is_no_cached_prompt(self) -> None:
        engine, _ = create_engine()
        prompt = list(range(6))
        first = create_request(prompt, max_tokens=12)
        engine.add_request(first)
        run(engine)
        again = create_request(prompt, max_tokens=14)
        again.output_token_ids = list(first.output_token_ids)
        engine.add_request(again)
        assert run(engine).last[again.request_id].cached_tokens == 6

    def test_a_held_prompt_includes_what_was_generated(self) -> None:
        engine, _ = create_engine()
        request = create_request(prompt=10, max_tokens=8, hold=True)
        tokens = expected_output(request.prompt_token_ids, 6)
        request.output_token_ids = tokens[:5]
        engine.add_request(request)
        done = run(engine)
        assert done.tokens[request.request_id] == tokens[5:]
        assert request.status is RequestStatus.HELD
        engine.release(request.request_id)
        assert engine.blocks.num_idle == engine.blocks.num_blocks


class TestPhases:
    """Where the time of a request went."""

    def test_phases_are_told_with_the_first_token_and_whenever_one_has_ended(self) -> None:
        clock = ManualClock()
        engine, _ = create_engine(EngineSpec(), clock=clock)
        request = create_request(prompt=4, max_tokens=5)
        engine.add_request(request)
        told = []
        while engine.runnable:
            clock.advance(1.0)
            engine.step()
            deltas = engine.take_outputs().deltas
            told += [[(p.name, p.seconds) for p in delta.phases] for _, delta in deltas]
        begun = [("queue", 1.0), ("prefill", 0.0), ("decode", 0.0)]
        assert told == [begun, [], [], [], [*begun[:2], ("decode", 4.0)]]


class TestPreempted:
    """A request that lost its blocks to an older one."""

    def test_its_time_is_accounted_for(self) -> None:
        clock = ManualClock()
        spec = EngineSpec(num_blocks=7, max_model_len=24, enable_prefix_caching=False)
        engine, _ = create_engine(spec, clock=clock)
        requests = [create_request(prompt=8, max_tokens=12) for _ in range(2)]
        for request in requests:
            engine.add_request(request)
        done = Collected()
        while engine.runnable:
            clock.advance(1.0)
            engine.step()
            done.take(engine)
        phases = done.last[requests[1].request_id].phases
        assert [phase.name for phase in phases] == [
            "queue", "prefill", "decode", "preempted", "prefill", "decode",
        ]  # fmt: skip
        assert sum(phase.seconds for phase in phases) == clock.now
        assert engine.counters.preemptions == 1

    def test_the_step_that_only_preempts_has_done_something(self) -> None:
        engine, _ = create_engine(EngineSpec(num_blocks=5, max_model_len=12))
        parked = create_request(prompt=5, fetch_from="peer")
        engine.add_request(parked)
        engine.step()
        alone = create_request(prompt=4, max_tokens=8)
        engine.add_request(alone)
        for _ in range(5):
            assert engine.step()
        assert alone.num_tokens == 9
        assert engine.step()  # its next token needs a block, and the others are parked
        assert alone.status is RequestStatus.WAITING
        assert not engine.step()
        engine.receive_failed(parked.request_id, EngineError("lost"))
        done = run(engine)
        assert done.tokens[alone.request_id] == expected_output(alone.prompt_token_ids, 8)


class TestFirstTokenFromAfar:
    """The worker that computed the prompt has sampled the first token."""

    def received(self, **changes: Any) -> tuple[Collected, str]:
        engine, _ = create_engine()
        request = create_request(prompt=9, fetch_from="peer", **changes)
        engine.add_request(request)
        engine.step()
        logprobs = TokenLogprobs(7, -0.5)
        engine.receive_first_token(
            request.request_id, SampledToken(7, logprobs), [PhaseTime("prefill", 0.0)], 4
        )
        done = Collected()
        done.take(engine)
        engine.abort(request.request_id)
        engine.receive_failed(request.request_id, EngineError("aborted"))
        assert engine.blocks.num_idle == engine.blocks.num_blocks
        return done, request.request_id

    def test_is_delivered_before_the_kv_is_here(self) -> None:
        done, request_id = self.received()
        delta = done.last[request_id]
        assert delta.token_ids == (7,)
        assert delta.logprobs == (TokenLogprobs(7, -0.5),)
        assert delta.cached_tokens == 4
        assert delta.finish_reason is None

    def test_may_be_a_stop_token(self) -> None:
        done, request_id = self.received(eos_token_ids=(7,))
        assert done.last[request_id].finish_reason is FinishReason.STOP
        assert done.last[request_id].stop_token_id == 7

    def test_of_an_aborted_request_is_passed_over(self) -> None:
        engine, executor = create_engine()
        request = create_request(prompt=9, fetch_from="peer")
        engine.add_request(request)
        engine.step()
        engine.abort(request.request_id)
        engine.receive_first_token(request.request_id, SampledToken(7), (), 0)
        engine.receive_done(request.request_id)
        assert not engine.take_outputs().deltas
        assert engine.blocks.num_idle == engine.blocks.num_blocks
        assert executor.admitted == set()


class TestReports:
    """Reports that come too late, or twice, change nothing."""

    @pytest.mark.parametrize("hold", [False, True])
    def test_about_a_request_that_does_not_receive(self, hold: bool) -> None:
        engine, _ = create_engine()
        request = create_request(prompt=9, max_tokens=2, hold=hold)
        engine.add_request(request)
        for step in range(2):
            engine.receive_first_token(request.request_id, SampledToken(7), (), 0)
            engine.receive_done(request.request_id)
            engine.receive_failed(request.request_id, EngineError("late"))
            if step == 0:
                engine.step()
        assert request.output_token_ids == expected_output(request.prompt_token_ids, 1)
        engine.abort(request.request_id)
        assert engine.blocks.num_idle == engine.blocks.num_blocks

    def test_about_unknown_requests(self) -> None:
        engine, _ = create_engine()
        engine.abort("nobody")
        engine.release("nobody")
        engine.receive_done("nobody")
        assert not engine.take_outputs()
        assert not engine.step()

    def test_release_of_a_request_that_is_not_held(self) -> None:
        engine, _ = create_engine()
        request = create_request(max_tokens=2)
        engine.add_request(request)
        engine.release(request.request_id)
        assert run(engine).tokens[request.request_id] == expected_output(
            request.prompt_token_ids, 2
        )


def test_integrity_sees_a_table_without_a_request() -> None:
    engine, _ = create_engine()
    stray = create_request()
    engine.blocks.open(stray, engine.blocks.match(stray))
    with pytest.raises(AssertionError, match=stray.request_id):
        engine.check_integrity()
