"""A gateway's session over an engine without a model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.engines import VOCAB, FakeExecutor, create_engine, expected_output
from tests.support.halting import HaltingExecutor
from tests.support.workers import eventually, submission, within, worker_config

from twinflow.protos.errors import Unavailable, WorkerLost
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb
from twinflow.protos.twinflow.v1 import inference_pb2 as public
from twinflow.runtime.lifecycle import ReceiveOrder
from twinflow.runtime.sampling_params import SamplingParams
from twinflow.workers.core import WorkerCore
from twinflow.workers.session import Session, engine_id_of


class NoFetcher:
    """There are no other workers here."""

    def start(self, order: ReceiveOrder) -> None:
        raise AssertionError("nothing is fetched here")

    def cancel(self, engine_id: str) -> None:
        """Nothing to cancel."""


@dataclass
class Setup:
    core: WorkerCore
    session: Session

    def submit(self, max_tokens: int = 4, prompt: list[int] | None = None) -> pb.Submission:
        params = SamplingParams(temperature=0, max_tokens=max_tokens, seed=0, ignore_eos=True)
        request = submission(prompt or [5, 6, 7], params)
        self.session.handle(pb.AttachRequest(submit=request))
        return request

    async def idle(self) -> None:
        """Nothing is held."""
        await eventually(
            lambda: (
                not len(self.core.outputs)
                and self.core.loop.snapshot.free_blocks == self.core.loop.snapshot.total_blocks
            ),
            lambda: self.core.loop.snapshot,
        )
        assert len(self.session) == 0
        await self.core.check_integrity()


@asynccontextmanager
async def setup(
    executor: FakeExecutor | None = None, max_backlog: int = 100
) -> AsyncIterator[Setup]:
    engine, _ = create_engine(executor=executor)
    core = WorkerCore(worker_config(Path("nowhere"), "mixed-0"), engine, VOCAB)
    core.start(NoFetcher())
    try:
        yield Setup(core, Session(core, max_backlog))
    finally:
        await core.loop.stop(5.0)


async def read_until_finished(session: Session, *requests: pb.Submission) -> list[pb.RequestOutput]:
    """All outputs up to the last one of each request."""
    outputs: list[pb.RequestOutput] = []
    left = {request.request_id for request in requests}
    async for message in session.messages():
        outputs += message.outputs
        left -= {o.request_id for o in message.outputs if o.finish_reason or o.HasField("failure")}
        if not left:
            return outputs
    raise AssertionError("the session ended")


async def test_tokens_come_back_in_order_and_with_a_reason_at_the_end() -> None:
    async with setup() as there:
        request = there.submit(max_tokens=5)
        outputs = await within(read_until_finished(there.session, request), "the outputs")
        tokens = [token for output in outputs for token in output.token_ids]
        assert tokens == expected_output([5, 6, 7], 5)
        assert outputs[-1].finish_reason == public.FINISH_REASON_LENGTH
        await there.idle()


async def test_the_first_message_is_the_load() -> None:
    async with setup() as there:
        message = await anext(there.session.messages())
        assert message.stats.total_blocks == 63
        assert not message.outputs


async def test_a_step_is_one_message() -> None:
    async with setup() as there:
        requests = [there.submit(max_tokens=6, prompt=[n + 1]) for n in range(4)]
        messages: list[pb.AttachResponse] = []
        finished = 0
        async for message in there.session.messages():
            messages.append(message)
            finished += sum(bool(output.finish_reason) for output in message.outputs)
            if finished == len(requests):
                break
        sizes = [len(message.outputs) for message in messages]
        assert sum(sizes) == 24
        # They decode together, so most messages speak of all four.
        assert sizes.count(4) >= 3
        await there.idle()


async def test_a_submission_that_comes_twice_is_served_once() -> None:
    async with setup() as there:
        request = there.submit(max_tokens=5)
        there.session.handle(pb.AttachRequest(submit=request))
        outputs = await within(read_until_finished(there.session, request), "the outputs")
        assert sum(len(output.token_ids) for output in outputs) == 5
        await there.idle()


async def test_attempts_of_a_request_are_different_requests() -> None:
    async with setup() as there:
        first = there.submit(max_tokens=5)
        second = pb.Submission()
        second.CopyFrom(first)
        second.attempt = 1
        there.session.handle(pb.AttachRequest(submit=second))
        outputs: list[pb.RequestOutput] = []
        async for message in there.session.messages():
            outputs += message.outputs
            if sum(bool(output.finish_reason) for output in outputs) == 2:
                break
        for attempt in (0, 1):
            assert sum(len(o.token_ids) for o in outputs if o.attempt == attempt) == 5
        await there.idle()


async def test_a_submission_without_a_seed_is_refused() -> None:
    async with setup() as there:
        request = submission([1], SamplingParams(temperature=0, max_tokens=2, seed=1))
        request.sampling.ClearField("seed")
        there.session.handle(pb.AttachRequest(submit=request))
        (output,) = await read_until_finished(there.session, request)
        assert output.failure.code == "invalid_request"
        assert "seed" in output.failure.message
        await there.idle()


async def test_messages_without_content_are_passed_over() -> None:
    async with setup() as there:
        there.session.handle(pb.AttachRequest())
        there.session.handle(pb.AttachRequest(abort=pb.Abort(request_id="never there")))
        request = there.submit()
        await within(read_until_finished(there.session, request), "the outputs")


async def test_deadlines_are_kept() -> None:
    executor = HaltingExecutor(4, tokens=1)
    async with setup(executor) as there:
        params = SamplingParams(temperature=0, max_tokens=100, seed=1)
        request = submission([1, 2], params, deadline_ms=1)
        there.session.handle(pb.AttachRequest(submit=request))
        outputs = await within(read_until_finished(there.session, request), "the deadline")
        assert outputs[-1].failure.code == "deadline_exceeded"
        executor.go_on()
        await there.idle()


async def test_an_abort_ends_a_request_without_a_word() -> None:
    executor = HaltingExecutor(4, tokens=3)
    async with setup(executor) as there:
        request = there.submit(max_tokens=100)
        await executor.halted()
        abort = pb.Abort(request_id=request.request_id, attempt=0)
        there.session.handle(pb.AttachRequest(abort=abort))
        executor.go_on()
        await there.idle()
        there.session.end()
        outputs = [o async for m in there.session.messages() for o in m.outputs]
        assert not any(output.finish_reason for output in outputs)


async def test_a_gateway_that_does_not_read_loses_its_session_and_its_requests() -> None:
    async with setup(max_backlog=3) as there:
        messages = there.session.messages()
        await anext(messages)
        for _ in range(3):
            there.submit(max_tokens=100)
        await there.idle()  # although nobody has read a word
        with pytest.raises(Unavailable, match="does not read"):
            async for _ in messages:
                pass


async def test_what_is_unread_comes_before_the_end() -> None:
    async with setup() as there:
        request = there.submit(max_tokens=3)
        await eventually(lambda: len(there.session) == 0, "the end of the request")
        there.session.end()
        outputs = await within(_all_outputs(there.session), "the end of the session")
        assert sum(len(output.token_ids) for output in outputs) == 3
        assert outputs[-1].request_id == request.request_id


async def _all_outputs(session: Session) -> list[pb.RequestOutput]:
    return [output async for message in session.messages() for output in message.outputs]


async def test_closing_aborts_what_runs() -> None:
    async with setup() as there:
        for _ in range(3):
            there.submit(max_tokens=100)
        there.session.close()
        await there.idle()


async def test_an_idle_worker_still_reports_its_load() -> None:
    async with setup() as there:
        messages = there.session.messages()
        for _ in range(2):
            message = await within(anext(messages), "a load report")
            assert message.HasField("stats")


async def test_a_dead_engine_ends_the_session_after_every_request_was_told() -> None:
    async with setup(FakeExecutor(4, fail=lambda work: True)) as there:
        requests = [there.submit() for _ in range(2)]
        outputs: list[pb.RequestOutput] = []
        with pytest.raises(WorkerLost, match="mixed-0"):
            async for message in there.session.messages():
                outputs += message.outputs
                if len(outputs) >= 2 and not there.core.state.death:
                    requests.append(there.submit())
        assert [o.request_id for o in outputs] == [r.request_id for r in requests]
        assert all(output.HasField("failure") for output in outputs)
        assert outputs[-1].failure.code == "worker_lost"
        assert len(there.session) == 0


async def test_a_worker_whose_engine_is_dead_takes_no_session() -> None:
    async with setup(FakeExecutor(4, fail=lambda work: True)) as there:
        for _ in range(3):
            there.submit()
            await eventually(lambda: len(there.session) == 0, "the failure")
        await eventually(lambda: there.core.state.death, "the death")
        with pytest.raises(WorkerLost):
            await anext(Session(there.core, 10).messages())


def test_names_of_requests_within_an_engine_tell_attempts_apart() -> None:
    assert len({engine_id_of("a", 0), engine_id_of("a", 1), engine_id_of("b", 0)}) == 3


async def test_the_timer_of_a_finished_request_does_not_fire() -> None:
    async with setup() as there:
        params = SamplingParams(temperature=0, max_tokens=1, seed=1, ignore_eos=True)
        request = submission([1, 2], params, deadline_ms=200)
        there.session.handle(pb.AttachRequest(submit=request))
        await within(read_until_finished(there.session, request), "the token")
        await asyncio.sleep(0.25)
        there.session.end()
        assert await _all_outputs(there.session) == []
