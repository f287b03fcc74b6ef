"""`twinflow.Admin` through a real door, with a real controller behind it."""

import asyncio
import threading
from contextlib import closing

import grpc
import pytest
from tests.support.admin_doors import ADMIN_TOKEN, admin_door

from twinflow import Admin
from twinflow.cluster.client.cluster_view import AutoscalingInfo, Cluster
from twinflow.cluster.router.snapshot import Route, WorkerView
from twinflow.protos.errors import (
    CheckpointError,
    InvalidRequest,
    Unauthenticated,
    Unavailable,
)
from twinflow.protos.twinflow.v1 import admin_pb2 as pb
from twinflow.protos.twinflow.v1 import admin_pb2_grpc as rpc
from twinflow.runtime.outputs import FinishReason, PhaseTime, TokenDelta


def pools(cluster: Cluster) -> dict[str, tuple[int, int]]:
    """Wanted and serving workers by pool."""
    return {pool.role: (pool.size, pool.serving) for pool in cluster.pools}


async def test_every_change_is_waited_for() -> None:
    async with admin_door(prefill=2, decode=1) as door:

        def change() -> None:
            with Admin(door.target, token=ADMIN_TOKEN, timeout_s=60.0) as admin:
                assert pools(admin.cluster()) == {"prefill": (2, 2), "decode": (1, 1)}
                assert pools(admin.pools.scale("decode", 3))["decode"] == (3, 3)
                assert pools(admin.pools.scale("decode", 2, drain="migrate"))["decode"] == (2, 2)
                flipped = admin.workers.flip("prefill-1", role="decode")
                assert pools(flipped) == {"prefill": (1, 1), "decode": (3, 3)}
                assert pools(admin.workers.flip("prefill-1", role="prefill"))["prefill"] == (2, 2)
                assert pools(admin.workers.drain("decode-0"))["decode"] == (1, 1)
                before = {worker.worker_id: worker.epoch for worker in admin.workers.list()}
                restarted = admin.restart()
                after = {worker.worker_id: worker.epoch for worker in restarted.workers}
                assert len(after) == 3 and min(after.values()) > max(before.values())
                assert restarted.is_settled_for(restarted.version)

        await asyncio.to_thread(change)
        assert {duty.role for duty in door.follower.duties} == {"prefill", "decode"}


async def test_a_pool_sizes_itself_until_that_ends() -> None:
    async with admin_door(prefill=1, decode=1) as door:

        def change() -> None:
            with Admin(door.target, token=ADMIN_TOKEN, timeout_s=60.0) as admin:
                admin.pools.autoscale("decode", min=2, max=8, tpot_ms=40)
                told = {pool.role: pool for pool in admin.cluster().pools}
                assert told["decode"].autoscaling == AutoscalingInfo(2, 8, tpot_ms=40.0)
                assert told["decode"].size == 2
                assert told["prefill"].autoscaling is None
                with pytest.raises(InvalidRequest, match="scaled automatically"):
                    admin.pools.scale("decode", 1)
                with pytest.raises(InvalidRequest, match="needs ttft_ms"):
                    admin.pools.autoscale("prefill", min=1, max=2)
                with pytest.raises(InvalidRequest, match="not 3 and 2"):
                    admin.pools.autoscale("decode", min=3, max=2, tpot_ms=1)
                with pytest.raises(InvalidRequest, match="these sizes"):
                    admin.pools.autoscale("decode", min=-1, max=2)
                admin.pools.autoscale_off("decode")
                told = {pool.role: pool for pool in admin.cluster().pools}
                assert told["decode"].autoscaling is None
                assert pools(admin.pools.scale("decode", 1))["decode"] == (1, 1)

        await asyncio.to_thread(change)


async def test_what_cannot_be_done_is_the_caller_s_mistake() -> None:
    async with admin_door(prefill=1, decode=1) as door:

        def ask() -> None:
            with Admin(door.target, token=ADMIN_TOKEN) as admin:
                for wrong, reason in (
                    (lambda: admin.pools.scale("decode", 0), "a decode worker is needed"),
                    (lambda: admin.workers.flip("w-3", role="decode"), "no worker 'w-3'"),
                    (lambda: admin.pools.scale("spare", 1), "not 'spare'"),  # type: ignore[arg-type]
                    (lambda: admin.pools.scale("decode", -1), "cannot have this size"),
                    (lambda: admin.restart(drain="now"), "drain is"),  # type: ignore[arg-type]
                    (lambda: admin.requests.explain("nobody"), "No request of this id"),
                ):
                    with pytest.raises(InvalidRequest, match=reason):
                        wrong()
                assert admin.cluster().version == 1

        await asyncio.to_thread(ask)


async def test_a_change_that_cannot_be_carried_out() -> None:
    async with admin_door(prefill=1, decode=1) as door:
        door.fleet.refusal = CheckpointError("config.json is gone")
        door.fleet.bounds = {"decode": 1}

        def ask() -> None:
            with Admin(door.target, token=ADMIN_TOKEN, timeout_s=60.0) as admin:
                with pytest.raises(Unavailable, match=r"cannot be made: .*config\.json is gone"):
                    admin.pools.scale("decode", 2)
                cluster = admin.cluster()
                assert pools(cluster)["decode"] == (2, 1)
                assert "gave up" in cluster.pools[1].problem
                assert cluster.unfinished() == "decode pool 1 of 2"

        await asyncio.to_thread(ask)


@pytest.mark.parametrize("token", ["wrong", "key-of-a-caller", "none"])
async def test_only_operators_are_let_in(token: str) -> None:
    tokens = () if token == "none" else (ADMIN_TOKEN,)
    async with admin_door(keys=("key-of-a-caller",), tokens=tokens, mixed=1) as door:

        def ask() -> None:
            with Admin(door.target, token=token) as admin, pytest.raises(Unauthenticated):
                admin.workers.list()

        await asyncio.to_thread(ask)


async def test_sent_twice_it_is_one_change() -> None:
    async with admin_door(prefill=1, decode=1) as door:
        metadata = (("authorization", f"Bearer {ADMIN_TOKEN}"),)
        async with grpc.aio.insecure_channel(door.target) as channel:
            stub = rpc.AdminStub(channel)
            request = pb.ScalePoolRequest(request_id="again", pool=pb.WORKER_ROLE_DECODE, size=2)
            answers = await asyncio.gather(
                *(stub.ScalePool(request, metadata=metadata, timeout=20) for _ in range(3))
            )
            assert {answer.cluster.version for answer in answers} == {2}
            other = pb.ScalePoolRequest(request_id="again", pool=pb.WORKER_ROLE_DECODE, size=3)
            with pytest.raises(grpc.aio.AioRpcError, match="used for another change"):
                await stub.ScalePool(other, metadata=metadata, timeout=20)
            for wrong in ("", "a b", "x" * 129):
                with pytest.raises(grpc.aio.AioRpcError, match="needs a request_id"):
                    await stub.RestartWorkers(
                        pb.RestartWorkersRequest(request_id=wrong), metadata=metadata, timeout=20
                    )
            with pytest.raises(grpc.aio.AioRpcError, match="pool must be"):
                await stub.ScalePool(
                    pb.ScalePoolRequest(request_id="r", size=1), metadata=metadata, timeout=20
                )


async def test_events_are_seen_as_they_happen_and_later() -> None:
    async with admin_door(prefill=1, decode=1) as door:
        seen: list[str] = []
        begun = threading.Event()

        def watch() -> None:
            with Admin(door.target, token=ADMIN_TOKEN) as admin:
                last = admin.cluster().last_event
                begun.set()
                with closing(admin.watch(last)) as events:
                    for event in events:
                        seen.append(event.kind)
                        if event.kind == "settled":
                            return

        def change() -> None:
            begun.wait(20.0)
            with Admin(door.target, token=ADMIN_TOKEN) as admin:
                admin.pools.scale("decode", 2)
                with closing(admin.watch(1)) as events:
                    assert next(events).kind == "started"

        await asyncio.gather(asyncio.to_thread(watch), asyncio.to_thread(change))
        assert seen == ["accepted", "started", "ready", "settled"]


async def test_where_a_request_went() -> None:
    async with admin_door(prefill=1, decode=1) as door:
        decode, prefill = (
            WorkerView(worker_id="decode-0", epoch=2),
            WorkerView(worker_id="prefill-0"),
        )
        for number in range(2):
            story = door.history.begin(f"4711-{number}", 10)
            door.history.attempt(story, Route(decode, prefill))
            door.history.deliver(story, TokenDelta((1, 2)))
            door.history.leave(story, "worker decode-0 is leaving")
            door.history.attempt(story, Route(prefill))
            phases = (PhaseTime("decode", 0.5),)
            last = TokenDelta((3,), finish_reason=FinishReason.LENGTH, phases=phases)
            door.history.deliver(story, last)

        def ask() -> None:
            with Admin(door.target, token=ADMIN_TOKEN) as admin:
                both = admin.requests.explain("chatcmpl-4711").sequences
                assert [one.sequence_id for one in both] == ["4711-0", "4711-1"]
                (one,) = admin.requests.explain("4711-1").sequences
                assert (one.state, one.prompt_tokens, one.output_tokens) == ("finished", 10, 3)
                assert [attempt.outcome for attempt in one.attempts] == [
                    "worker decode-0 is leaving",
                    "finished",
                ]
                assert [attempt.prefill_worker for attempt in one.attempts] == ["prefill-0", ""]
                assert one.first_token_s is not None
                assert one.phases == (PhaseTime("decode", 0.5),)

        await asyncio.to_thread(ask)
