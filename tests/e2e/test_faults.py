"""Workers that die or freeze: no request is lost, no token changes, and others take their place."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.support.completions import read_stream
from tests.support.deployments import QUIET_S, START_S, Deployment, serving, wait_until
from tests.support.request_mixes import Ask

from twinflow import Admin, SamplingParams
from twinflow.cluster.client.cluster_view import Event

TOKEN = "let-me-in"
FLAGS = (
    *("--dtype", "float32", "--max-model-len", "4096", "--num-kv-blocks", "300"),
    *("--admin-token", TOKEN),
)
# Takes seconds.
LONG = Ask((5, 6, 7), SamplingParams(temperature=0, max_tokens=250, ignore_eos=True))
# Faults are noticed within 5 s; a busy machine gets more.
NOTICED_S = 30.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


async def becomes_ready(deployment: Deployment) -> None:
    """A token goes through every pair, and nobody is missing."""

    def ready() -> bool:
        answer = httpx.get(f"{deployment.http_url}/ready", trust_env=False, timeout=QUIET_S)
        return answer.status_code == 200

    await asyncio.to_thread(
        wait_until, ready, "it to be ready", START_S, lambda: deployment.log[-3000:]
    )


async def ends(deployment: Deployment, pid: int) -> None:
    """A process is no more."""

    def gone() -> bool:
        return pid not in deployment.processes()

    await asyncio.to_thread(wait_until, gone, f"process {pid} to end", NOTICED_S)


def epochs(admin: Admin) -> dict[str, tuple[int, int]]:
    """Life and process of each worker."""
    return {worker.worker_id: (worker.epoch, worker.pid) for worker in admin.workers.list()}


def next_loss(events: Iterator[Event]) -> str:
    """The next worker that is lost; news of how all settled after the one before may precede it."""
    return next(event.worker_id for event in events if event.kind == "lost")


@pytest.mark.parametrize("launcher", ["local", "ray"])
async def test_workers_that_die_and_freeze_are_replaced(tiny_model: Path, launcher: str) -> None:
    """What they were generating goes on elsewhere, behind its last token."""
    with (
        serving(tiny_model, "--launcher", launcher, *FLAGS) as deployment,
        Admin(deployment.grpc_target, token=TOKEN) as admin,
    ):
        expected = await read_stream(deployment, LONG, asyncio.Event())
        for fault in (signal.SIGKILL, signal.SIGSTOP):
            began = asyncio.Event()
            reading = asyncio.create_task(read_stream(deployment, LONG, began))
            await asyncio.wait_for(began.wait(), QUIET_S)
            before = epochs(admin)
            last = admin.cluster().last_event
            os.kill(before["decode-0"][1], fault)
            events = admin.watch(last)
            assert await asyncio.to_thread(next_loss, events) == "decode-0"
            assert await reading == expected
            await becomes_ready(deployment)
            events.close()
            after = epochs(admin)
            assert after["prefill-0"] == before["prefill-0"]
            assert after["decode-0"][0] > before["decode-0"][0]
            # Whatever was frozen dies, in Ray's own time, and says nothing later.
            await ends(deployment, before["decode-0"][1])
        assert await read_stream(deployment, LONG, asyncio.Event()) == expected
        metrics = deployment.wait_idle()
        assert metrics.workers == {"prefill-0", "decode-0"}
        assert metrics.failed == 0
