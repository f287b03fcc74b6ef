"""A session with one worker: connecting, identity, load, and what it does when it breaks."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager

import pytest
from tests.support.dispatchers import PATIENT, QUICK, create_spec
from tests.support.fake_worker import TOKEN, FakeWorker, running, until

from twinflow.cluster.dispatch.address import WorkerAddress
from twinflow.cluster.dispatch.config import DispatchConfig
from twinflow.cluster.dispatch.submission import build_submission
from twinflow.cluster.dispatch.worker_client import WorkerClient
from twinflow.cluster.gateway.backend import LaneInfo
from twinflow.cluster.router.snapshot import Route, WorkerView
from twinflow.protos.errors import Unavailable, WorkerLost
from twinflow.protos.twinflow.internal.v1 import worker_pb2 as pb


class Listener:
    """What a client reports."""

    def __init__(self) -> None:
        self.changes: list[bool] = []
        self.stats: list[tuple[str, str, int]] = []
        self.failure: Exception | None = None

    def on_stats(self, worker: str, role: str, stats: pb.WorkerStats) -> None:
        self.stats.append((worker, role, stats.free_blocks))
        if self.failure is not None:
            raise self.failure

    def on_change(self, client: WorkerClient) -> None:
        self.changes.append(client.up)


@asynccontextmanager
async def connected(
    where: WorkerAddress,
    listener: Listener,
    token: str = TOKEN,
    config: DispatchConfig = PATIENT,
) -> AsyncGenerator[WorkerClient, None]:
    """A client that tries to connect."""
    client = WorkerClient(
        where, token, on_stats=listener.on_stats, on_change=listener.on_change, config=config
    )
    client.start()
    try:
        yield client
    finally:
        await client.close()


def submission_of(max_tokens: int = 8) -> pb.Submission:
    """Something to send."""
    route = Route(WorkerView(worker_id="mixed-0"))
    return build_submission(create_spec(max_tokens=max_tokens), (), route=route, deadline_s=60.0)


class TestConnecting:
    """Who may be at the other end."""

    async def test_what_it_learns(self) -> None:
        worker, listener = FakeWorker("decode-3", "decode", epoch=7), Listener()
        worker.behaviour.load = pb.WorkerStats(
            num_running=2, num_waiting=3, num_receiving=4, waiting_tokens=50, free_blocks=9
        )
        async with running(worker) as (where,), connected(where, listener) as client:
            assert client.problem == "not connected yet"
            assert not client.view().up
            await until(lambda: client.up)
            assert client.problem == ""
            assert client.view() == WorkerView(
                worker_id="decode-3",
                epoch=7,
                address=where.address,
                role="decode",
                block_size=4,
                free_blocks=9,
                num_requests=9,
                queued_tokens=50,
            )
        assert listener.changes == [True]
        assert listener.stats[0] == ("decode-3", "decode", 9)

    async def test_lanes_that_fail_while_it_serves(self) -> None:
        worker = FakeWorker("mixed-0")
        worker.description.lanes.CopyFrom(pb.LaneInfo(wanted="auto", backend="cores"))
        worker.behaviour.load = pb.WorkerStats(lanes=pb.LaneStats(failure="cores 0,1: gone"))
        async with running(worker) as (where,), connected(where, Listener()) as client:
            await until(lambda: client.up)
            assert client.info().lanes == LaneInfo("auto", "none", reason="cores 0,1: gone")

    async def test_nobody(self) -> None:
        listener = Listener()
        async with connected(WorkerAddress("mixed-0", "127.0.0.1:1"), listener) as client:
            await until(lambda: "unavailable" in client.problem)
            with pytest.raises(Unavailable, match="mixed-0 is not connected: the conn"):
                await anext(client.generate(submission_of()))
        assert listener.changes == []

    async def test_another_worker(self) -> None:
        async with running(FakeWorker("mixed-1")) as (where,):
            wrong = WorkerAddress("mixed-0", where.address)
            async with connected(wrong, Listener()) as client:
                await until(lambda: client.problem.endswith("is worker mixed-1, not mixed-0"))

    async def test_without_the_secret(self) -> None:
        worker, token = FakeWorker("mixed-0"), "guessed"
        async with running(worker) as (where,), connected(where, Listener(), token) as client:
            await until(lambda: "unauthenticated" in client.problem)
            assert not client.up


class TestComingBack:
    """A worker's next life."""

    async def test_with_a_new_epoch(self) -> None:
        worker, listener = FakeWorker("mixed-0"), Listener()
        async with running(worker) as (where,), connected(where, listener) as client:
            await until(lambda: client.up)
            await worker.restart()
            await until(lambda: client.up and client.view().epoch == 2)
        assert listener.changes == [True, False, True]

    async def test_in_another_role(self) -> None:
        worker = FakeWorker("mixed-0")
        async with running(worker) as (where,), connected(where, Listener()) as client:
            await until(lambda: client.up)
            await worker.restart(role=pb.ROLE_PREFILL)
            await until(lambda: client.up and client.role == "prefill")

    @pytest.mark.parametrize("change", ["model_fingerprint", "kv_layout"])
    async def test_with_another_model(self, change: str) -> None:
        worker = FakeWorker("mixed-0")
        before = getattr(worker.description, change)
        async with running(worker) as (where,), connected(where, Listener()) as client:
            await until(lambda: client.up)
            await worker.restart(**{change: "other"})
            await until(lambda: "another model or KV layout" in client.problem)
            assert not client.up
            await worker.restart(**{change: before})
            await until(lambda: client.up)


class TestLosing:
    """The session breaks under live requests."""

    @pytest.mark.parametrize(
        ("how", "problem"),
        [
            ("die", "was lost: the connection failed"),
            ("freeze", "was lost: no sign of life for 0.6 s"),
        ],
    )
    async def test_every_request_hears_of_it(self, how: str, problem: str) -> None:
        worker = FakeWorker("mixed-0")
        worker.behaviour.pause_after = 1
        config = QUICK if how == "freeze" else PATIENT
        async with (
            running(worker) as (where,),
            connected(where, Listener(), config=config) as client,
        ):
            await until(lambda: client.up)
            streams = [client.generate(submission_of()) for _ in range(3)]
            for stream in streams:
                assert len((await anext(stream)).token_ids) == 1
            assert client.num_live == client.view().assigned_requests == 3
            if how == "die":
                await worker.die()
            else:
                worker.freeze()
            for stream in streams:
                with pytest.raises(WorkerLost, match=problem):
                    await anext(stream)
            assert client.num_live == 0

    async def test_closing_the_client(self) -> None:
        worker = FakeWorker("mixed-0")
        worker.behaviour.pause_after = 1
        async with running(worker) as (where,), connected(where, Listener()) as client:
            await until(lambda: client.up)
            async with aclosing(client.generate(submission_of())) as stream:
                await anext(stream)
                await client.close()
                with pytest.raises(WorkerLost, match="the gateway closed the session"):
                    await anext(stream)
            assert not client.running
            await until(lambda: not worker.sessions)

    async def test_closing_while_a_message_arrives(self) -> None:
        """The order to close is heard whenever it comes."""
        for pause in range(12):
            worker = FakeWorker("mixed-0")
            async with running(worker) as (where,), connected(where, Listener()) as client:
                while not client.up:
                    await asyncio.sleep(0.005)
                death = asyncio.create_task(worker.die())
                for _ in range(pause):
                    await asyncio.sleep(0)
                async with asyncio.timeout(20.0):
                    await client.close()
                await death

    async def test_a_gateway_that_stood_still_does_not_blame_the_worker(self) -> None:
        """What came meanwhile is read before anybody is given up."""
        worker, listener = FakeWorker("mixed-0"), Listener()
        async with running(worker) as (where,), connected(where, listener, config=QUICK) as client:
            await until(lambda: client.up)
            time.sleep(QUICK.silence_limit_s * 1.5)
            heard = len(listener.stats)
            await until(lambda: len(listener.stats) > heard + 20)
        assert listener.changes == [True]

    async def test_a_listener_that_fails_does_not_leave_requests_waiting(self) -> None:
        worker, listener = FakeWorker("mixed-0"), Listener()
        worker.behaviour.pause_after = 0
        async with running(worker) as (where,), connected(where, listener) as client:
            await until(lambda: client.up)
            reader = asyncio.create_task(anext(client.generate(submission_of())))
            await until(lambda: worker.live)
            listener.failure = RuntimeError("no room for metrics")
            with pytest.raises(WorkerLost, match="no room for metrics"):
                await reader
            assert client.running


async def test_outputs_of_unknown_requests_are_passed_over() -> None:
    """A request that was closed may still have tokens on the way."""
    worker = FakeWorker("mixed-0")
    async with running(worker) as (where,), connected(where, Listener()) as client:
        await until(lambda: client.up)
        for _ in range(20):
            async with aclosing(client.generate(submission_of(max_tokens=50))) as stream:
                await anext(stream)
        await until(lambda: not worker.live)
        assert client.up
        assert client.num_live == 0
