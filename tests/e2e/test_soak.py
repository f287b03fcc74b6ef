"""1 000 mixed requests, some bad and some broken off: each ends once, and nothing stays behind."""

import os
import resource
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tests.support.completions import CompletionsClient, for_each
from tests.support.deployments import QUIET_S, Deployment, Footprint, serving, wait_until
from tests.support.request_mixes import Ask, MixShape, random_asks
from tests.support.served_models import TINY_VOCAB
from tests.support.soak import Clients, Job, MixShares, Outcome, plan_jobs

from twinflow import AsyncClient, SamplingParams

SHAPE = MixShape(vocab_size=TINY_VOCAB, longest_prompt=100, most_tokens=24)
AT_ONCE = 32
QUEUE = 64
FLAGS = (
    *("--launcher", "local", "--dtype", "float32", "--threads-per-worker", "1"),
    *("--max-model-len", "160", "--block-size", "8", "--num-kv-blocks", "61"),
    *("--max-num-seqs", "8", "--max-num-batched-tokens", "64"),
    # The prefill worker keeps the other ends of closed links for twice as long.
    *("--max-num-queued-reqs", str(QUEUE), "--kv-link-idle-timeout", "1"),
)
# Descriptors return to what they were. Of threads, asyncio keeps a pool for calls that block, which
# may not have been full before; a leak would grow with the 1 000 requests, or with the 100 that are
# broken off.
POOL = min(32, (os.cpu_count() or 1) + 4)


@pytest.fixture(scope="module")
def deployment(tiny_model: Path) -> Iterator[Deployment]:
    with serving(tiny_model, *FLAGS) as deployment:
        yield deployment


async def run_jobs(deployment: Deployment, jobs: list[Job]) -> list[Outcome]:
    async with (
        CompletionsClient(deployment, AT_ONCE) as http,
        AsyncClient(deployment.grpc_target) as grpc,
    ):
        clients = Clients(http, grpc, TINY_VOCAB)
        return await for_each(jobs, clients.run, AT_ONCE)


def growth(before: Mapping[int, Footprint], after: Mapping[int, Footprint]) -> dict[int, Footprint]:
    """What processes hold more than they may; the processes are the same."""
    assert before.keys() == after.keys()
    more = {
        pid: Footprint(after[pid].fds - held.fds, after[pid].threads - held.threads)
        for pid, held in before.items()
    }
    return {pid: grown for pid, grown in more.items() if grown.fds > 0 or grown.threads > POOL}


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_every_request_ends_once_and_nothing_stays_behind(deployment: Deployment) -> None:
    await run_jobs(deployment, plan_jobs(random_asks(100, SHAPE, 3), MixShares(0, 0), seed=3))
    before, held_before = deployment.wait_idle(), deployment.footprints()

    jobs = plan_jobs(random_asks(1000, SHAPE, seed=4), MixShares(), seed=4)
    outcomes = await run_jobs(deployment, jobs)
    after = deployment.wait_idle()

    assert [job for job, end in zip(jobs, outcomes, strict=True) if not job.allows(end)] == []
    count = Counter(outcomes)
    assert count[Outcome.CANCELLED] > 0
    finished, aborted = after.finished - before.finished, after.aborted - before.aborted
    assert after.failed == 0
    assert after.accepted - before.accepted == finished + aborted
    # A client that went away may have had a whole answer on its way, or not have been admitted.
    assert 0 <= finished - count[Outcome.FINISHED] <= count[Outcome.CANCELLED] - aborted
    assert aborted > 0
    wait_until(
        lambda: not growth(held_before, deployment.footprints()),
        "file descriptors and threads to be given back",
        QUIET_S,
        lambda: str(growth(held_before, deployment.footprints())),
    )


@pytest.mark.slow
async def test_the_queue_is_as_long_as_it_was_and_the_deployment_is_ready(
    deployment: Deployment,
) -> None:
    """A request for as many completions as the queue has room for needs all of it."""
    ask = Ask((5, 6, 7), SamplingParams(n=QUEUE, temperature=1.0, max_tokens=2))
    async with CompletionsClient(deployment) as client:
        answer = await client.raw(client.body(ask))
    assert len(answer["choices"]) == QUEUE
    deployment.wait_idle()
    assert httpx.get(f"{deployment.http_url}/ready", timeout=10.0).json()["ready"] is True


@contextmanager
def no_more_descriptors(pid: int) -> Iterator[None]:
    """A process may open nothing beside what it has open."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    held = len(os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (held, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.slow
async def test_without_descriptors_new_connections_are_closed_and_those_there_go_on(
    deployment: Deployment,
) -> None:
    """Nobody hangs, and once there are descriptors again nothing has happened."""
    (gateway,) = (p for p in deployment.processes().values() if "gateway" in p.cmdline())
    url = f"{deployment.http_url}/health"
    async with httpx.AsyncClient(timeout=30.0) as there:
        assert (await there.get(url)).status_code == 200
        with no_more_descriptors(gateway.pid):
            for _ in range(3):
                async with httpx.AsyncClient(timeout=30.0) as new:
                    with pytest.raises(
                        (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
                    ):
                        await new.get(url)
                assert (await there.get(url)).status_code == 200
    wait_until(
        lambda: httpx.get(url, timeout=30.0).status_code == 200,
        "the gateway to take connections again",
        QUIET_S,
        lambda: deployment.log[-1000:],
    )
