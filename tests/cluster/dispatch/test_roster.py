"""Workers come, go and change their role while sequences run; no token changes."""

import asyncio
from contextlib import aclosing

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
from tests.support.engines import next_token
from tests.support.fake_worker import Behaviour, FakeWorker, running, until

from twinflow.cluster.dispatch.address import WorkerAddress
from twinflow.cluster.dispatch.config import DispatchConfig
from twinflow.cluster.dispatch.dispatcher import MAX_LOSSES, Dispatcher
from twinflow.cluster.dispatch.roster import Duty
from twinflow.cluster.gateway.backend import GenerationSpec
from twinflow.protos.errors import Unavailable, WorkerLost


def expected(spec: GenerationSpec) -> list[int]:
    """What every worker generates for it."""
    tokens = list(spec.prompt_token_ids)
    for _ in range(spec.params.max_tokens or 0):
        tokens.append(next_token(tokens))
    return tokens[len(spec.prompt_token_ids) :]


def duty(worker: FakeWorker, **changes: object) -> Duty:
    """A worker, whatever its life."""
    return Duty(worker.where, **changes)  # type: ignore[arg-type]


def this_life(worker: FakeWorker) -> Duty:
    """A worker in its present life."""
    where = worker.where
    return Duty(WorkerAddress(where.worker_id, where.address, worker.description.epoch))


async def run_until_paused(
    dispatcher: Dispatcher, spec: GenerationSpec, pause: int, begun: asyncio.Event
) -> list[int]:
    """Run a sequence; says when it has so many tokens."""
    dispatcher.admit((spec,))
    tokens: list[int] = []
    async with aclosing(dispatcher.generate(spec)) as deltas:
        async for delta in deltas:
            tokens += delta.token_ids
            if len(tokens) >= pause:
                begun.set()
    return tokens


async def test_a_worker_that_comes_is_used_and_one_that_goes_is_forgotten() -> None:
    first, second = FakeWorker("mixed-0"), FakeWorker("mixed-1")
    reports = Reports()
    async with running(first, second):
        dispatcher = create_dispatcher([first], PATIENT, reports)
        dispatcher.start()
        await until(lambda: dispatcher.available == ("mixed-0",))
        dispatcher.follow([duty(first), duty(second)])
        await until(lambda: reports.workers == {"mixed-0", "mixed-1"})
        dispatcher.follow([duty(second)])
        assert reports.workers == {"mixed-1"}
        spec = create_spec()
        assert tokens_of(await collect(dispatcher, spec)) == expected(spec)
        assert (len(first.submissions), len(second.submissions)) == (0, 1)
        await until(lambda: not first.sessions)
        dispatcher.check_integrity()
        await dispatcher.close()


async def test_the_role_is_the_controller_s_word() -> None:
    prefill, decode = FakeWorker("prefill-0", "prefill"), FakeWorker("decode-0", "decode")
    async with dispatching(prefill, decode) as dispatcher:
        dispatcher.follow([duty(prefill, role="decode"), duty(decode, role="prefill")])
        await until(lambda: len(dispatcher.available) == 2)
        await collect(dispatcher, create_spec())
        (submission,) = prefill.submissions
        assert submission.prefill.worker_id == "decode-0"
        dispatcher.follow([duty(prefill), duty(decode)])
        await collect(dispatcher, create_spec())
        (submission,) = decode.submissions
        assert submission.prefill.worker_id == "prefill-0"


async def test_a_worker_that_leaves_finishes_what_it_has_and_gets_no_more() -> None:
    one, other = FakeWorker("mixed-0"), FakeWorker("mixed-1")
    one.behaviour.pause_after = other.behaviour.pause_after = None
    async with dispatching(one, other) as dispatcher:
        dispatcher.follow([duty(one, leaving=True), duty(other)])
        for _ in range(4):
            await collect(dispatcher, create_spec())
        assert (len(one.submissions), len(other.submissions)) == (0, 4)
        readiness = await dispatcher.readiness()
        assert readiness.ready
        assert readiness.pairs == ("mixed-1: ok",)


async def test_sequences_of_a_worker_that_moves_them_go_on_behind_their_last_token() -> None:
    one, other = FakeWorker("mixed-0"), FakeWorker("mixed-1")
    one.behaviour.pause_after = 3
    async with dispatching(one, other) as dispatcher:
        dispatcher.follow([duty(one), duty(other, leaving=True)])
        specs = [create_spec(max_tokens=8) for _ in range(3)]
        begun = [asyncio.Event() for _ in specs]
        running_ = [
            asyncio.create_task(run_until_paused(dispatcher, spec, 3, event))
            for spec, event in zip(specs, begun, strict=True)
        ]
        await asyncio.gather(*(event.wait() for event in begun))
        dispatcher.follow([duty(one, leaving=True, moving=True), duty(other)])
        assert await asyncio.gather(*running_) == [expected(spec) for spec in specs]
        assert len(one.aborted) == len(other.submissions) == 3
        assert all(list(s.output_token_ids) for s in other.submissions)
        (story,) = dispatcher.history.find(specs[0].request_id)
        assert [a.outcome for a in story.attempts] == ["worker mixed-0 is leaving", "finished"]
        assert [a.tokens for a in story.attempts] == [3, 5]
        assert story.state == "finished"


async def test_moves_are_nobody_s_fault() -> None:
    """Losses are counted, because a request may be what kills workers; moves are not."""
    workers = [FakeWorker(f"mixed-{n}") for n in range(MAX_LOSSES + 2)]
    for worker in workers[:-1]:
        worker.behaviour.pause_after = 1
    async with dispatching(*workers) as dispatcher:
        spec, begun = create_spec(), asyncio.Event()
        task = asyncio.create_task(run_until_paused(dispatcher, spec, 1, begun))
        for number in range(len(workers) - 1):
            await until(lambda n=number: bool(workers[n].submissions))  # type: ignore[misc]
            await until(
                lambda n=number: dispatcher.roster.clients[f"mixed-{n}"].promised.num_tokens == 0  # type: ignore[misc]
            )
            gone = [duty(w, leaving=True, moving=True) for w in workers[: number + 1]]
            dispatcher.follow([*gone, *(duty(w) for w in workers[number + 1 :])])
        assert await task == expected(spec)


async def test_a_late_life_is_fenced_off() -> None:
    """A worker that was given up and comes back is not used, whatever it says."""
    worker = FakeWorker("mixed-0", epoch=4)
    async with running(worker) as (where,):
        dispatcher = create_dispatcher([worker], QUICK)
        dispatcher.follow([Duty(WorkerAddress("mixed-0", where.address, 5))])
        client = dispatcher.roster.clients["mixed-0"]
        await until(lambda: "life 4" in client.problem)
        assert client.problem == "it is in its life 4, and life 5 is wanted"
        assert not dispatcher.available
        worker.description.epoch = 5
        await until(lambda: dispatcher.available == ("mixed-0",))
        await dispatcher.close()


async def test_another_life_is_another_worker() -> None:
    old, new = FakeWorker("mixed-0", epoch=1), FakeWorker("mixed-0", epoch=2)
    old.behaviour.pause_after = 3
    async with running(old, new):
        dispatcher = create_dispatcher([old])
        dispatcher.start()
        await until(lambda: bool(dispatcher.available))
        spec, begun = create_spec(), asyncio.Event()
        task = asyncio.create_task(run_until_paused(dispatcher, spec, 3, begun))
        await begun.wait()
        dispatcher.follow([this_life(new)])
        with pytest.raises(Unavailable, match="no worker"):
            await task  # not up yet, and nobody waits for it
        await until(lambda: dispatcher.available == ("mixed-0",))
        assert tokens_of(await collect(dispatcher, spec2 := create_spec())) == expected(spec2)
        await dispatcher.close()


async def test_a_sequence_without_any_worker_waits_for_one() -> None:
    config = DispatchConfig(silence_limit_s=30.0, reconnect_s=0.02, rejoin_s=30.0)
    old, new = FakeWorker("mixed-0", epoch=1), FakeWorker("mixed-0", epoch=2)
    old.behaviour.pause_after = 3
    async with running(old, new):
        dispatcher = create_dispatcher([old], config)
        dispatcher.start()
        await until(lambda: bool(dispatcher.available))
        spec, begun = create_spec(), asyncio.Event()
        task = asyncio.create_task(run_until_paused(dispatcher, spec, 3, begun))
        await begun.wait()
        await old.die()
        await until(lambda: not dispatcher.available)
        dispatcher.follow([this_life(new)])
        assert await task == expected(spec)
        await dispatcher.close()


async def test_what_is_missing_is_not_ready() -> None:
    worker = FakeWorker("mixed-0")
    async with dispatching(worker) as dispatcher:
        dispatcher.follow([duty(worker)], ("mixed-1: it is starting",))
        await until(lambda: bool(dispatcher.available))
        readiness = await dispatcher.readiness()
        assert (readiness.ready, readiness.serving) == (False, True)
        assert readiness.reason == "mixed-1: it is starting"


async def test_a_request_that_kills_workers_is_given_up() -> None:
    workers = [FakeWorker(f"mixed-{n}") for n in range(3)]
    for worker in workers:
        worker.behaviour = Behaviour(failure=WorkerLost("the engine failed for good"))
    async with dispatching(*workers) as dispatcher:
        spec = create_spec()
        with pytest.raises(WorkerLost):
            await collect(dispatcher, spec)
        assert sum(len(worker.submissions) for worker in workers) == MAX_LOSSES
        (story,) = dispatcher.history.find(spec.request_id)
        assert story.state == "failed"
