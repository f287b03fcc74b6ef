"""Readiness is a token through every way that a request can take."""

import asyncio
from dataclasses import replace

import pytest
from tests.support.dispatchers import PATIENT, QUICK, dispatching
from tests.support.engines import ManualClock
from tests.support.fake_worker import TOKEN, FakeWorker, running, until

from twinflow.cluster.dispatch.config import DispatchConfig
from twinflow.cluster.dispatch.probe import Prober, probe_routes
from twinflow.cluster.dispatch.roster import Duty, Roster
from twinflow.cluster.router.snapshot import WorkerView
from twinflow.protos.errors import HandoffError
from twinflow.workers.role import Role


def names(*pools: Role) -> list[str]:
    """The routes of workers of these roles, numbered within their role."""
    views = [
        WorkerView(worker_id=f"{role[0]}{sum(r == role for r in pools[:index])}", role=role)
        for index, role in enumerate(pools)
    ]
    routes = probe_routes(views)
    return [f"{r.prefill.worker_id if r.prefill else ''}>{r.decode.worker_id}" for r in routes]


@pytest.mark.parametrize(
    ("pools", "routes"),
    [
        (("prefill", "decode"), ["p0>d0"]),
        (("prefill", "prefill", "decode", "decode"), ["p0>d0", "p0>d1", "p1>d0", "p1>d1"]),
        (("mixed", "mixed"), [">m0", ">m1"]),
        (("mixed", "decode"), ["m0>d0", ">m0"]),
        (("prefill", "decode", "mixed"), ["p0>d0", "m0>d0", ">m0"]),
        (("decode", "decode"), [">d0", ">d1"]),
        (("prefill",), [">p0"]),
        ((), []),
    ],
)
def test_every_way_that_a_request_can_take(pools: tuple[Role, ...], routes: list[str]) -> None:
    assert names(*pools) == routes


def test_workers_that_take_no_requests_are_not_probed() -> None:
    views = [
        WorkerView(worker_id="d0", role="decode", up=False),
        WorkerView(worker_id="d1", role="decode", draining=True),
        WorkerView(worker_id="p0", role="prefill"),
    ]
    assert [route.decode.worker_id for route in probe_routes(views)] == ["p0"]


class TestReadiness:
    """Through a dispatcher, over real sessions."""

    async def test_a_token_through_every_pair(self) -> None:
        prefill = FakeWorker("prefill-0", "prefill")
        decode = [FakeWorker(f"decode-{number}", "decode") for number in range(2)]
        async with dispatching(prefill, *decode) as dispatcher:
            answer = await dispatcher.readiness()
        assert (answer.ready, answer.degraded, answer.reason) == (True, False, "")
        assert answer.pairs == ("prefill-0→decode-0: ok", "prefill-0→decode-1: ok")
        for worker in decode:
            (probe,) = worker.submissions
            assert probe.probe
            assert probe.prefill.worker_id == "prefill-0"
            assert (probe.max_tokens, list(probe.eos_token_ids)) == (2, [])

    async def test_a_pair_without_a_link(self) -> None:
        prefill, decode = FakeWorker("prefill-0", "prefill"), FakeWorker("decode-0", "decode")
        decode.behaviour.failure = HandoffError("no link")
        async with dispatching(prefill, decode) as dispatcher:
            answer = await dispatcher.readiness()
        assert not answer.serving
        assert answer.reason == answer.pairs[0] == "prefill-0→decode-0: no link"

    async def test_a_worker_that_is_slow(self) -> None:
        worker = FakeWorker("mixed-0")
        worker.behaviour.pause_after = 1
        worker.behaviour.forgets_deadlines = True
        async with dispatching(worker, config=QUICK) as dispatcher:
            answer = await dispatcher.readiness()
            assert answer.reason == "mixed-0: no token within 1 s"
            await until(lambda: worker.aborted)

    async def test_a_worker_that_is_lost(self) -> None:
        workers = FakeWorker("mixed-0"), FakeWorker("mixed-1")
        async with dispatching(*workers) as dispatcher:
            await workers[1].die()
            await until(lambda: len(dispatcher.available) == 1)
            answer = await dispatcher.readiness()
            assert (answer.ready, answer.degraded, answer.serving) == (False, True, True)
            assert answer.pairs[0] == "mixed-0: ok"
            assert answer.pairs[1].startswith("mixed-1: the connection failed")
            assert "127.0.0.1" not in answer.pairs[1]
            await workers[0].die()
            await until(lambda: not dispatcher.available)

    async def test_no_worker_at_all(self) -> None:
        worker = FakeWorker("mixed-0")
        async with dispatching(worker) as dispatcher:
            await worker.die()
            await until(lambda: not dispatcher.available)
            answer = await dispatcher.readiness()
        assert not answer.serving
        assert answer.reason.startswith("no worker is available (mixed-0: the connection failed")


async def test_answers_are_shared_while_they_are_fresh() -> None:
    """However many ask, nothing is probed twice within the time."""
    worker, clock = FakeWorker("mixed-0"), ManualClock()
    async with running(worker) as (where,):
        config = DispatchConfig(probe_fresh_s=1.0)
        roster = Roster(
            TOKEN,
            config,
            on_stats=lambda *_: None,
            on_change=lambda _: None,
            on_removed=lambda _: None,
        )
        prober = Prober(roster, (), config, clock)
        roster.follow([Duty(where)])
        await until(lambda: roster.clients["mixed-0"].up)
        await asyncio.gather(*(prober.readiness() for _ in range(20)))
        clock.advance(1.0)
        await prober.readiness()
        assert len(worker.submissions) == 1
        clock.advance(0.1)
        await prober.readiness()
        assert len(worker.submissions) == 2
        await roster.close()


async def test_a_fresh_answer_of_other_workers_does_not_count() -> None:
    """Nobody hears that all is well behind the news that a worker is lost."""
    workers = FakeWorker("mixed-0"), FakeWorker("mixed-1")
    config = replace(PATIENT, probe_fresh_s=3600.0)
    async with dispatching(*workers, config=config) as dispatcher:
        assert (await dispatcher.readiness()).ready
        await workers[1].die()
        await until(lambda: len(dispatcher.available) == 1)
        assert not (await dispatcher.readiness()).ready
        survivor = [Duty(workers[0].where)]
        dispatcher.follow(survivor, missing=("1 mixed worker is missing: being started",))
        assert (await dispatcher.readiness()).reason.startswith("1 mixed worker is missing")
        dispatcher.follow(survivor)
        assert (await dispatcher.readiness()).ready
