"""However a deployment ends, nothing of it stays; if it may, it finishes what it has begun."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.support.completions import CompletionsClient, Refused, read_stream
from tests.support.deployments import QUIET_S, Deployment, serving, wait_until
from tests.support.request_mixes import Ask

from twinflow import AsyncClient, SamplingParams
from twinflow.protos.errors import Unavailable

FLAGS = ("--dtype", "float32", "--max-model-len", "4096", "--num-kv-blocks", "300")
LAUNCHERS = ("local", "ray")
# Takes seconds.
LONG = Ask((5, 6, 7), SamplingParams(temperature=0, max_tokens=800, ignore_eos=True))
# Takes longer than anybody here waits.
ENDLESS = Ask((5, 6, 7), SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True))
HURRIED_STATUS = 130

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


async def broken_http_stream(deployment: Deployment, began: asyncio.Event) -> dict[str, Any]:
    """Stream an answer that cannot end well; returns the error that it ends with."""
    async with CompletionsClient(deployment) as client:
        body = client.body(ENDLESS) | {"stream": True}
    last = ""
    url = f"{deployment.http_url}/v1/completions"
    async with (
        httpx.AsyncClient(trust_env=False, timeout=QUIET_S) as http,
        http.stream("POST", url, json=body) as response,
    ):
        async for line in response.aiter_lines():
            last = line or last
            began.set()
    event: dict[str, Any] = json.loads(last.removeprefix("data: "))
    error: dict[str, Any] = event["error"]
    return error


async def broken_grpc_stream(deployment: Deployment, began: asyncio.Event) -> str:
    """Stream an answer that cannot end well; returns what its status says."""
    async with AsyncClient(deployment.grpc_target) as client:
        try:
            async for _ in client.stream(token_ids=ENDLESS.prompt, params=ENDLESS.params):
                began.set()
        except Unavailable as error:
            return str(error)
    raise AssertionError("the stream ended well")


async def refusal(deployment: Deployment) -> Refused | None:
    async with CompletionsClient(deployment) as client:
        try:
            await client.whole(Ask((8, 9), SamplingParams(max_tokens=1)))
        except Refused as refused:
            return refused
    return None


@contextmanager
def started(model: Path, *flags: str) -> Iterator[Deployment]:
    """A deployment that is ready and that the test brings to its end."""
    deployment = Deployment(model, *flags)
    try:
        deployment.wait_ready()
        yield deployment
    finally:
        deployment.kill()


@asynccontextmanager
async def broken_streams(
    deployment: Deployment,
) -> AsyncIterator[asyncio.Future[tuple[dict[str, Any], str]]]:
    """A running stream through each door, and what they will end with."""
    began = asyncio.Event(), asyncio.Event()
    ends = asyncio.gather(
        broken_http_stream(deployment, began[0]), broken_grpc_stream(deployment, began[1])
    )
    try:
        async with asyncio.timeout(QUIET_S):
            await asyncio.gather(*(event.wait() for event in began))
        yield ends
    finally:
        ends.cancel()
        await asyncio.gather(ends, return_exceptions=True)


@pytest.mark.parametrize("launcher", LAUNCHERS)
async def test_an_interrupt_lets_running_requests_finish(tiny_model: Path, launcher: str) -> None:
    """And refuses new ones meanwhile."""
    with serving(tiny_model, "--launcher", launcher, *FLAGS) as deployment:
        began = asyncio.Event()
        reading = asyncio.create_task(read_stream(deployment, LONG, began))
        await asyncio.wait_for(began.wait(), QUIET_S)
        deployment.interrupt()
        async with asyncio.timeout(QUIET_S):
            while (refused := await refusal(deployment)) is None:
                await asyncio.sleep(0.05)
        assert refused.status == 503
        assert len(await reading) == LONG.params.max_tokens
        await asyncio.to_thread(deployment.wait_ended, 0)


async def test_a_second_interrupt_ends_streams_with_an_error(tiny_model: Path) -> None:
    """Through both doors, and nothing has to be killed."""
    with started(tiny_model, "--launcher", "ray", *FLAGS) as deployment:
        async with broken_streams(deployment) as ends:
            deployment.interrupt()
            await asyncio.to_thread(
                wait_until, lambda: "Stopping" in deployment.log, "it to stop", QUIET_S
            )
            assert not ends.done()
            deployment.interrupt()
            async with asyncio.timeout(QUIET_S):
                http_error, grpc_error = await ends
        assert http_error["code"] == "service_unavailable"
        assert "shutting down" in grpc_error
        await asyncio.to_thread(deployment.wait_ended, HURRIED_STATUS)
        assert "Killing" not in deployment.log


async def test_a_third_interrupt_ends_it_at_once(tiny_model: Path) -> None:
    """Even if the gateway does not answer at all."""
    with started(tiny_model, "--launcher", "local", "--shutdown-timeout", "1000") as deployment:
        (gateway,) = [p for p in deployment.processes().values() if "gateway" in p.cmdline()]
        gateway.suspend()
        for _ in range(3):
            deployment.interrupt()
            await asyncio.sleep(0.2)  # signals that come together count as one
        await asyncio.to_thread(deployment.wait_ended, HURRIED_STATUS)
        assert "Killing gateway-0" in deployment.log


def test_a_supervisor_s_signal_is_as_good(tiny_model: Path) -> None:
    with started(tiny_model, "--launcher", "ray", *FLAGS) as deployment:
        deployment.send_signal(signal.SIGTERM)
        deployment.wait_ended(0)
        assert "Stopped." in deployment.log


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_command_takes_everything_along(tiny_model: Path, launcher: str) -> None:
    """Everything but two helpers of Ray's, which stay for a minute to look for it."""
    with started(tiny_model, "--launcher", launcher, *FLAGS) as deployment:
        assert len(deployment.processes()) > 3
        deployment.send_signal(signal.SIGKILL)
        deployment.wait_gone(but={"ray::DashboardAgent", "ray::RuntimeEnvAgent"})


async def test_a_killed_command_ends_streams_with_an_error(tiny_model: Path) -> None:
    """Processes of the local launcher notice, and have time for it."""
    with started(tiny_model, "--launcher", "local", *FLAGS) as deployment:
        async with broken_streams(deployment) as ends:
            deployment.send_signal(signal.SIGKILL)
            async with asyncio.timeout(QUIET_S):
                http_error, grpc_error = await ends
        assert http_error["code"] == "service_unavailable"
        assert "shutting down" in grpc_error
