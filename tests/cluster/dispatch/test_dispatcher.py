"""Sequences over fake workers that die, freeze, refuse, drain and come back."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from tests.support.dispatchers import (
    PATIENT,
    QUICK,
    Reports,
    collect,
    create_dispatcher,
    create_spec,
    dispatching,
    tokens_of,
)
from tests.support.engines import expected_output
from tests.support.fake_worker import FakeWorker, logprob_at, until

from twinflow.cluster.gateway.backend import GenerationSpec
from twinflow.cluster.router.prefix_index import PrefixIndex
from twinflow.protos.errors import (
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    Overloaded,
    TwinflowError,
    Unavailable,
    WorkerLost,
)
from twinflow.runtime.outputs import FinishReason, PhaseTime, TokenDelta


def expected(spec: GenerationSpec) -> list[int]:
    """What the fake workers' model generates."""
    return expected_output(spec.prompt_token_ids, spec.params.max_tokens or 0)


def pair() -> tuple[FakeWorker, FakeWorker]:
    """Two equal workers; a lone sequence is sent to the first one."""
    return FakeWorker("mixed-0"), FakeWorker("mixed-1")


class TestStreaming:
    """A sequence that nothing happens to."""

    async def test_tokens_logprobs_and_the_account_of_its_time(self) -> None:
        worker = FakeWorker("mixed-0")
        worker.behaviour.cached_tokens = 4
        async with dispatching(worker) as dispatcher:
            spec = create_spec(prompt=10, max_tokens=6)
            deltas = await collect(dispatcher, spec)
        assert tokens_of(deltas) == expected(spec)
        assert [d.logprobs[0].logprob for d in deltas] == [logprob_at(p) for p in range(10, 16)]
        assert deltas[0].cached_tokens == 4
        assert [d.finish_reason for d in deltas] == [None] * 5 + [FinishReason.LENGTH]
        assert deltas[-1].phases == (PhaseTime("decode", 0.25),)

    async def test_the_decode_worker_is_told_who_computes_the_prompt(self) -> None:
        prefill, decode = FakeWorker("prefill-0", "prefill", epoch=3), FakeWorker("d", "decode")
        async with dispatching(prefill, decode) as dispatcher:
            await collect(dispatcher, create_spec())
        assert prefill.submissions == []
        (submission,) = decode.submissions
        peer = submission.prefill
        assert (peer.worker_id, peer.epoch, peer.address) == ("prefill-0", 3, prefill.where.address)

    async def test_what_is_submitted(self) -> None:
        worker = FakeWorker("mixed-0")
        async with dispatching(worker) as dispatcher:
            spec = create_spec(prompt=[1, 2], priority=-3, cache_salt="s", deadline_s=50.0)
            await collect(dispatcher, spec)
        (submission,) = worker.submissions
        assert list(submission.prompt_token_ids) == [1, 2]
        assert (submission.priority, submission.cache_salt) == (-3, "s")
        assert (submission.attempt, list(submission.output_token_ids)) == (0, [])
        assert list(submission.eos_token_ids) == [996]
        assert 40_000 < submission.deadline_ms <= 50_000
        assert not submission.HasField("prefill")
        assert not submission.probe

    async def test_a_thousand_sequences_at_once(self) -> None:
        workers = pair()
        async with dispatching(*workers, max_requests=1000) as dispatcher:
            specs = [create_spec(prompt=1 + index % 9, max_tokens=3) for index in range(1000)]
            results = await asyncio.gather(*(collect(dispatcher, spec) for spec in specs))
        for spec, deltas in zip(specs, results, strict=True):
            assert tokens_of(deltas) == expected(spec)
        assert min(len(worker.submissions) for worker in workers) > 400


async def take(stream: Any, count: int) -> list[TokenDelta]:
    """The next few deltas."""
    return [await anext(stream) for _ in range(count)]


class TestLoss:
    """A worker is lost in the middle of a stream."""

    @pytest.mark.parametrize("how", ["die", "freeze"])
    async def test_the_stream_goes_on_elsewhere(self, how: str) -> None:
        """No token is lost or doubled, and logprobs go on with them."""
        first, second = pair()
        first.behaviour.pause_after = 3
        config = QUICK if how == "freeze" else PATIENT
        async with dispatching(first, second, config=config) as dispatcher:
            spec = create_spec(prompt=10, max_tokens=9)
            dispatcher.admit((spec,))
            async with aclosing(dispatcher.generate(spec)) as stream:
                deltas = await take(stream, 3)
                if how == "die":
                    await first.die()
                else:
                    first.freeze()
                deltas += [delta async for delta in stream]
            (again,) = second.submissions
            await first.die()
        assert tokens_of(deltas) == expected(spec)
        assert [d.logprobs[0].logprob for d in deltas] == [logprob_at(p) for p in range(10, 19)]
        assert (again.attempt, list(again.output_token_ids)) == (1, expected(spec)[:3])
        assert again.request_id == first.submissions[0].request_id

    async def test_before_the_first_token(self) -> None:
        first, second = pair()
        first.behaviour.pause_after = 0
        async with dispatching(first, second) as dispatcher:
            spec = create_spec()
            running = asyncio.create_task(collect(dispatcher, spec))
            await until(lambda: first.submissions)
            await first.die()
            assert tokens_of(await running) == expected(spec)

    async def test_the_decode_worker_of_a_pair(self) -> None:
        """The prefill worker is all that is left: every worker holds both flows."""
        prefill, decode = FakeWorker("prefill-0", "prefill"), FakeWorker("decode-0", "decode")
        decode.behaviour.pause_after = 2
        async with dispatching(prefill, decode) as dispatcher:
            spec = create_spec()
            dispatcher.admit((spec,))
            async with aclosing(dispatcher.generate(spec)) as stream:
                deltas = await take(stream, 2)
                await decode.die()
                deltas += [delta async for delta in stream]
        assert tokens_of(deltas) == expected(spec)
        assert not prefill.submissions[0].HasField("prefill")

    async def test_twice_is_the_end(self) -> None:
        workers = [FakeWorker(f"mixed-{number}") for number in range(3)]
        for worker in workers:
            worker.behaviour.pause_after = 2
        async with dispatching(*workers) as dispatcher:
            spec = create_spec()
            dispatcher.admit((spec,))
            deltas: list[TokenDelta] = []
            async with aclosing(dispatcher.generate(spec)) as stream:
                for worker in workers[:2]:
                    deltas += await take(stream, 2)
                    await worker.die()
                with pytest.raises(WorkerLost, match="worker mixed-1 was lost"):
                    await anext(stream)
        assert tokens_of(deltas) == expected(spec)[:4]
        assert workers[2].submissions == []

    async def test_of_the_only_worker(self) -> None:
        worker = FakeWorker("mixed-0")
        worker.behaviour.pause_after = 1
        async with dispatching(worker) as dispatcher:
            spec = create_spec()
            dispatcher.admit((spec,))
            async with aclosing(dispatcher.generate(spec)) as stream:
                await take(stream, 1)
                await worker.die()
                with pytest.raises(Unavailable, match="no worker is available"):
                    await anext(stream)
            with pytest.raises(Unavailable, match="No worker is available") as refused:
                dispatcher.admit((create_spec(),))
            assert refused.value.retry_after_s == 2.0

    async def test_what_it_had_cached_is_forgotten(self) -> None:
        first, second = pair()
        prompt = list(range(40))
        async with dispatching(first, second) as dispatcher:
            other = create_spec(prompt=30, max_tokens=60)
            first.behaviour.pause_after = 0
            busy = asyncio.create_task(collect(dispatcher, other))
            await until(lambda: first.submissions)
            await collect(dispatcher, create_spec(prompt))
            busy.cancel()
            await until(lambda: not first.live)
            await collect(dispatcher, create_spec(prompt))
            assert len(second.submissions) == 2
            await second.restart()
            await until(lambda: second.sessions and len(dispatcher.available) == 2)
            first.behaviour.pause_after = None
            await collect(dispatcher, create_spec(prompt))
        assert (len(first.submissions), len(second.submissions)) == (2, 2)


class TestRefusal:
    """A worker does not serve the sequence."""

    async def test_a_draining_worker_is_left_for_another(self) -> None:
        first, second = pair()
        first.behaviour.failure = Unavailable("the worker is draining")
        async with dispatching(first, second) as dispatcher:
            spec = create_spec()
            assert tokens_of(await collect(dispatcher, spec)) == expected(spec)
        assert (len(first.submissions), len(second.submissions)) == (1, 1)

    async def test_a_worker_that_says_it_drains_is_not_asked(self) -> None:
        first, second = pair()
        async with dispatching(first, second) as dispatcher:
            first.drain()
            await until(lambda: dispatcher.available == ("mixed-1",))
            await collect(dispatcher, create_spec())
            second.drain()
            await until(lambda: not dispatcher.available)
            with pytest.raises(Unavailable):
                dispatcher.admit((create_spec(),))
        assert first.submissions == []

    @pytest.mark.parametrize(
        "failure",
        [
            EngineError("the step failed"),
            InvalidRequest("min_tokens leaves no token"),
            DeadlineExceeded("too late"),
        ],
    )
    async def test_other_errors_are_final(self, failure: TwinflowError) -> None:
        first, second = pair()
        first.behaviour.failure = failure
        async with dispatching(first, second) as dispatcher:
            with pytest.raises(type(failure), match=failure.message):
                await collect(dispatcher, create_spec())
        assert second.submissions == []


class TestAbort:
    """Whoever stops reading stops the worker too."""

    async def test_closing_the_stream(self) -> None:
        worker = FakeWorker("mixed-0")
        worker.behaviour.pause_after = 2
        async with dispatching(worker) as dispatcher:
            spec = create_spec()
            dispatcher.admit((spec,))
            async with aclosing(dispatcher.generate(spec)) as stream:
                await take(stream, 2)
                assert (dispatcher.num_live, dispatcher.queue.num_requests) == (1, 0)
            assert dispatcher.num_live == 0
            await until(lambda: worker.aborted)
        assert worker.aborted == [(spec.request_id, 0)]

    async def test_cancelling_the_reader(self) -> None:
        worker = FakeWorker("mixed-0")
        worker.behaviour.pause_after = 0
        async with dispatching(worker) as dispatcher:
            spec = create_spec()
            reader = asyncio.create_task(collect(dispatcher, spec))
            await until(lambda: worker.live)
            assert dispatcher.queue.num_requests == 1
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await until(lambda: worker.aborted)
        assert worker.aborted == [(spec.request_id, 0)]

    async def test_a_finished_sequence_is_not_aborted(self) -> None:
        worker = FakeWorker("mixed-0")
        async with dispatching(worker) as dispatcher:
            await collect(dispatcher, create_spec())
            await collect(dispatcher, create_spec())
        assert worker.aborted == []

    async def test_every_session_that_ends_aborts_what_it_submitted(self) -> None:
        worker = FakeWorker("mixed-0")
        worker.behaviour.pause_after = 1
        async with dispatching(worker) as dispatcher:
            spec = create_spec()
            dispatcher.admit((spec,))
            async with aclosing(dispatcher.generate(spec)) as stream:
                await take(stream, 1)
                await dispatcher.close()
                with pytest.raises(Unavailable, match="no worker is available"):
                    await anext(stream)
            await until(lambda: worker.aborted and not worker.sessions)


class TestDeadline:
    """A sequence takes no longer than it may."""

    async def test_it_is_over_before_anything_was_sent(self) -> None:
        worker = FakeWorker("mixed-0")
        async with dispatching(worker) as dispatcher:
            with pytest.raises(DeadlineExceeded, match="before it was served"):
                await collect(dispatcher, create_spec(deadline_s=0.0))
        assert worker.submissions == []

    async def test_the_worker_keeps_it(self) -> None:
        worker = FakeWorker("mixed-0")
        worker.behaviour.pause_after = 2
        async with dispatching(worker) as dispatcher:
            with pytest.raises(DeadlineExceeded, match="too late"):
                await collect(dispatcher, create_spec(deadline_s=0.1))

    async def test_a_worker_that_forgets_it_is_reminded(self) -> None:
        worker = FakeWorker("mixed-0")
        worker.behaviour.pause_after = 0
        worker.behaviour.forgets_deadlines = True
        async with dispatching(worker, config=QUICK) as dispatcher:
            spec = create_spec(deadline_s=0.05)
            with pytest.raises(DeadlineExceeded, match="mixed-0 did not end the request"):
                await collect(dispatcher, spec)
            await until(lambda: worker.aborted)
        assert worker.aborted == [(spec.request_id, 0)]


class TestAdmission:
    """Room is reserved for all or for none, and always given back."""

    async def test_room_until_the_first_token(self) -> None:
        worker = FakeWorker("mixed-0")
        worker.behaviour.pause_after = 1
        async with dispatching(worker, max_requests=2) as dispatcher:
            specs = tuple(create_spec() for _ in range(2))
            dispatcher.admit(specs)
            with pytest.raises(Overloaded, match=r"full \(2 requests\)"):
                dispatcher.admit((create_spec(),))
            async with aclosing(dispatcher.generate(specs[0])) as stream:
                await take(stream, 1)
                late = create_spec()
                dispatcher.admit((late,))
                dispatcher.release(late)
            dispatcher.release(specs[1])

    async def test_a_stream_that_is_never_started(self) -> None:
        """An async generator that nobody starts runs no code: its owner releases it."""
        worker = FakeWorker("mixed-0")
        async with dispatching(worker) as dispatcher:
            spec = create_spec()
            dispatcher.admit((spec,))
            await dispatcher.generate(spec).aclose()
            assert dispatcher.num_live == dispatcher.queue.num_requests == 1
            dispatcher.release(spec)
            dispatcher.release(spec)
        assert worker.submissions == []

    async def test_without_any_worker(self) -> None:
        dispatcher = create_dispatcher([FakeWorker("mixed-0")])
        with pytest.raises(Unavailable, match="No worker is available"):
            dispatcher.admit((create_spec(),))


class TestDrain:
    """Shutting down."""

    async def test_waits_for_what_was_admitted_and_refuses_the_rest(self) -> None:
        worker = FakeWorker("mixed-0")
        async with dispatching(worker) as dispatcher:
            spec = create_spec()
            dispatcher.admit((spec,))
            draining = asyncio.create_task(dispatcher.drain(30.0))
            await asyncio.sleep(0)
            with pytest.raises(Unavailable, match="shutting down") as refused:
                dispatcher.admit((create_spec(),))
            assert refused.value.retry_after_s == 5.0
            assert not (await dispatcher.readiness()).ready
            # Admitted before, started only now.
            deltas = [delta async for delta in dispatcher.generate(spec)]
            assert await draining == 0
        assert tokens_of(deltas) == expected(spec)

    async def test_tells_how_many_it_did_not_wait_for(self) -> None:
        worker = FakeWorker("mixed-0")
        async with dispatching(worker) as dispatcher:
            spec = create_spec()
            dispatcher.admit((spec,))
            assert await dispatcher.drain(0.0) == 1
            dispatcher.release(spec)


async def test_alive_as_long_as_it_tries(capsys: pytest.CaptureFixture[str]) -> None:
    worker = FakeWorker("mixed-0")
    async with dispatching(worker) as dispatcher:
        await worker.die()
        await until(lambda: not dispatcher.available)
        assert dispatcher.alive()
        await worker.restart()
        await until(lambda: dispatcher.available)
        await dispatcher.close()
        assert not dispatcher.alive()
    # Losing a worker is told once, however often it is tried again.
    assert capsys.readouterr().out.count("worker is not available") == 1


async def test_a_worker_is_reported_while_it_reconnects_and_forgotten_when_it_is_gone() -> None:
    reports, worker = Reports(), FakeWorker("mixed-0")
    config = replace(PATIENT, gone_after_s=0.3)
    async with dispatching(worker, config=config, listener=reports) as dispatcher:
        await worker.die()
        await until(lambda: not dispatcher.available)
        assert reports.workers == reports.lost == {"mixed-0"}
        await worker.restart()
        await until(lambda: dispatcher.available)
        assert not reports.lost
        await worker.die()
        await until(lambda: not reports.workers)
        await worker.restart()
        await until(lambda: reports.workers)


async def test_a_prompt_is_named_once_for_all_its_completions_and_attempts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named: list[Sequence[int]] = []
    names_of = PrefixIndex.names

    def names(index: PrefixIndex, token_ids: Sequence[int], salt: str) -> list[int]:
        named.append(token_ids)
        return names_of(index, token_ids, salt)

    monkeypatch.setattr(PrefixIndex, "names", names)
    first, second = pair()
    first.behaviour.failure = Unavailable("the worker is draining")
    async with dispatching(first, second) as dispatcher:
        spec = create_spec(prompt=20)
        siblings = (spec, replace(spec, request_id="sibling"), create_spec(prompt=20))
        dispatcher.admit(siblings)
        for sibling in siblings:
            deltas = [delta async for delta in dispatcher.generate(sibling)]
            assert tokens_of(deltas) == expected(sibling)
    assert first.submissions
    assert named == [spec.prompt_token_ids, siblings[2].prompt_token_ids]


async def test_a_prompt_counts_until_its_first_token() -> None:
    """A sequence that only decodes is no queue for those behind it."""
    prefill = [FakeWorker(f"prefill-{number}", "prefill") for number in range(2)]
    decode = FakeWorker("decode-0", "decode")
    decode.behaviour.pause_after = 1
    async with dispatching(*prefill, decode) as dispatcher:
        spec = create_spec(prompt=100)
        dispatcher.admit((spec,))
        async with aclosing(dispatcher.generate(spec)) as stream:
            await take(stream, 1)
            decode.behaviour.pause_after = None
            await collect(dispatcher, create_spec(prompt=10))
    assert [s.prefill.worker_id for s in decode.submissions] == ["prefill-0", "prefill-0"]


async def test_a_burst_is_spread_before_any_worker_has_reported() -> None:
    """Prompts go where the fewest prompt tokens are on their way, whatever reports come in."""
    prefill = [FakeWorker(f"prefill-{number}", "prefill") for number in range(3)]
    decode = [FakeWorker(f"decode-{number}", "decode") for number in range(2)]
    for worker in decode:
        worker.behaviour.pause_after = 0
    async with dispatching(*prefill, *decode) as dispatcher:
        specs = [create_spec(prompt=100 if index == 0 else 20) for index in range(16)]
        readers = [asyncio.create_task(collect(dispatcher, spec)) for spec in specs]
        await until(lambda: sum(len(worker.submissions) for worker in decode) == 16)
        await asyncio.sleep(0.2)  # reports that still say nothing of it
        readers.append(asyncio.create_task(collect(dispatcher, create_spec(prompt=20))))
        await until(lambda: sum(len(worker.submissions) for worker in decode) == 17)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    sent = [submission.prefill.worker_id for worker in decode for submission in worker.submissions]
    assert [len(worker.submissions) for worker in decode] in ([8, 9], [9, 8])
    assert sent.count("prefill-0") in (3, 4)
    assert abs(sent.count("prefill-1") - sent.count("prefill-2")) <= 1
