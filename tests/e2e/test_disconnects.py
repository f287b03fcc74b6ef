"""A client that goes away frees both pools at once, whatever its request was doing.

The requests would run for many seconds; steps of four tokens make their phases long.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.support.completions import CompletionsClient
from tests.support.deployments import QUIET_S, Deployment, serving, wait_until
from tests.support.request_mixes import Ask
from tests.support.served_models import TINY_CONTEXT, TINY_VOCAB

from twinflow import AsyncClient, SamplingParams
from twinflow.cluster.chaos.scrape import Scrape

FLAGS = (
    *("--launcher", "local", "--dtype", "float32", "--threads-per-worker", "1"),
    *("--num-kv-blocks", "2200", "--max-num-seqs", "4", "--max-num-batched-tokens", "4"),
)
# A second to abort, half a second until the workers' next report, the rest for a busy machine.
FREED_S = 3.0
# gRPC's health service has tokens sent through both workers from time to time.
PROBE_BLOCKS = 1
LONG_PROMPT, LONG_OUTPUT = TINY_CONTEXT - 10, TINY_CONTEXT - 100


@pytest.fixture(scope="module")
def deployment(tiny_model: Path) -> Iterator[Deployment]:
    with serving(tiny_model, *FLAGS) as deployment:
        yield deployment


def ask_for(prompt_tokens: int, max_tokens: int) -> Ask:
    """A request that no prefix cache has anything of."""
    prompt = tuple(random.choices(range(3, TINY_VOCAB), k=prompt_tokens))
    return Ask(prompt, SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True))


async def read_http(deployment: Deployment, ask: Ask, began: asyncio.Event) -> None:
    async with CompletionsClient(deployment) as client:
        async for _ in client.events(ask):
            began.set()


async def read_grpc(deployment: Deployment, ask: Ask, began: asyncio.Event) -> None:
    async with AsyncClient(deployment.grpc_target) as client:
        async for _ in client.stream(token_ids=ask.prompt, params=ask.params):
            began.set()


DOORS = {"http": read_http, "grpc": read_grpc}
Read = Callable[[Deployment, Ask, asyncio.Event], Coroutine[None, None, None]]


@asynccontextmanager
async def reading(
    read: Read, deployment: Deployment, ask: Ask
) -> AsyncIterator[tuple["asyncio.Task[None]", asyncio.Event]]:
    """A client at work in the background."""
    began = asyncio.Event()
    task = asyncio.create_task(read(deployment, ask, began))
    try:
        yield task, began
    finally:
        await hang_up(task)


async def hang_up(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def wait_for(deployment: Deployment, condition: Callable[[Scrape], bool], what: str) -> None:
    await asyncio.to_thread(
        wait_until,
        lambda: condition(deployment.scrape()),
        what,
        QUIET_S,
        lambda: str(deployment.scrape().held()),
    )


def computing_a_prompt(metrics: Scrape) -> bool:
    """Its first part is computed, and has been sent as it became ready."""
    left = metrics.value("twinflow:waiting_prompt_tokens", worker="prefill-0")
    receiving = metrics.value("twinflow:num_requests_receiving", worker="decode-0")
    return 0 < left < LONG_PROMPT - 1000 and receiving == 1


def assert_freed(deployment: Deployment, aborted: float) -> None:
    """Everything is given back in time, and the request counts as aborted."""
    wait_until(
        lambda: not deployment.scrape().held(),
        "both pools to be freed",
        FREED_S,
        lambda: str(deployment.scrape().held()),
    )
    assert deployment.scrape().aborted == aborted


def assert_decode_worker_freed(deployment: Deployment, aborted: float) -> None:
    """The same of the decode worker, where a probe may wait for the prefill worker meanwhile."""
    wait_until(
        lambda: deployment.scrape().held().get("decode-0 blocks", 0) <= PROBE_BLOCKS,
        "the decode worker to be freed",
        FREED_S,
        lambda: str(deployment.scrape().held()),
    )
    assert deployment.scrape().aborted == aborted


@pytest.mark.slow
@pytest.mark.parametrize("read", DOORS.values(), ids=DOORS.keys())
async def test_while_the_prompt_is_computed(deployment: Deployment, read: Read) -> None:
    aborted = deployment.scrape().aborted
    async with reading(read, deployment, ask_for(LONG_PROMPT, 2)) as (task, began):
        await wait_for(deployment, computing_a_prompt, "the prompt to be computed")
        assert not began.is_set()
        await hang_up(task)
        assert_freed(deployment, aborted + 1)


@pytest.mark.slow
@pytest.mark.parametrize("read", DOORS.values(), ids=DOORS.keys())
async def test_while_kv_is_on_its_way_from_a_worker_that_has_stopped(
    deployment: Deployment, read: Read
) -> None:
    """The decode worker waits for KV; it must not wait to give its blocks back."""
    aborted, prefill = deployment.scrape().aborted, deployment.workers[0]
    async with reading(read, deployment, ask_for(LONG_PROMPT, 2)) as (task, _):
        await wait_for(deployment, computing_a_prompt, "the prompt to be computed")
        prefill.suspend()
        try:
            await hang_up(task)
            assert_decode_worker_freed(deployment, aborted + 1)
        finally:
            prefill.resume()
        deployment.wait_idle()


@pytest.mark.slow
@pytest.mark.parametrize("read", DOORS.values(), ids=DOORS.keys())
async def test_while_tokens_are_generated(deployment: Deployment, read: Read) -> None:
    aborted = deployment.scrape().aborted
    async with reading(read, deployment, ask_for(10, LONG_OUTPUT)) as (task, began):
        await asyncio.wait_for(began.wait(), QUIET_S)
        await hang_up(task)
        assert_freed(deployment, aborted + 1)
