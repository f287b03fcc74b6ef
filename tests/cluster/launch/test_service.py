"""How a service is stopped inside its process, whichever launcher it has."""

import asyncio

import pytest

from twinflow.cluster.launch.service import Report, ServiceRunner
from twinflow.protos.errors import ConfigError, RankLost, TwinflowError


class FakeService:
    """Drains until `idle`, and notes what it is told.

    Attributes:
        problem: why it does not start, if it does not.
        drain_problem: what goes wrong while it drains, if anything does.
        failure: done when it cannot serve any more.
        idle: set when nothing runs.
        log: what happened, in order.
    """

    def __init__(self) -> None:
        self.problem: Exception | None = None
        self.drain_problem: Exception | None = None
        self.failure: asyncio.Future[TwinflowError] = asyncio.get_running_loop().create_future()
        self.idle = asyncio.Event()
        self.log: list[str] = []

    async def start(self, report: Report) -> dict[str, str]:
        report("loading", 1, 2)
        if self.problem is not None:
            raise self.problem
        return {"grpc": "127.0.0.1:1"}

    async def wait_failed(self) -> TwinflowError:
        return await asyncio.shield(self.failure)

    async def drain(self, grace_s: float) -> None:
        self.log.append(f"drain {grace_s:g}")
        if self.drain_problem is not None:
            raise self.drain_problem
        await self.idle.wait()
        self.log.append("idle")

    async def stop(self, grace_s: float) -> None:
        self.log.append(f"stop {grace_s:g}")


@pytest.fixture
async def service() -> FakeService:
    return FakeService()


async def stopping(runner: ServiceRunner, grace_s: float) -> "asyncio.Task[None]":
    task = asyncio.create_task(runner.stop(grace_s))
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def test_what_runs_may_finish(service: FakeService) -> None:
    runner = ServiceRunner(service)
    assert (await runner.start()).endpoints == (("grpc", "127.0.0.1:1"),)
    first = await stopping(runner, 30.0)
    assert (service.log, first.done()) == (["drain 30"], False)
    service.idle.set()
    await first
    assert service.log == ["drain 30", "idle", "stop 0"]


async def test_a_further_order_waits_no_longer(service: FakeService) -> None:
    runner = ServiceRunner(service)
    await runner.start()
    orders = [await stopping(runner, 30.0) for _ in range(3)]
    await asyncio.gather(*orders)
    assert service.log == ["drain 30", "stop 0"]


async def test_a_service_that_did_not_start_has_nothing_to_drain(service: FakeService) -> None:
    service.problem = ConfigError("--port: taken")
    runner = ServiceRunner(service)
    status = await runner.start()
    assert (status.state, status.detail) == ("failed", "--port: taken")
    assert status.error_code == ConfigError.code
    await runner.stop(30.0)
    assert service.log == ["stop 0"]


async def test_a_service_that_fails_later_says_why_and_has_nothing_to_drain(
    service: FakeService,
) -> None:
    failures: list[str] = []
    runner = ServiceRunner(service, lambda: failures.append(runner.status.detail))
    assert (await runner.start()).state == "ready"
    service.failure.set_result(RankLost("rank 1 is lost"))
    await asyncio.sleep(0.01)
    assert failures == ["rank 1 is lost"]
    assert (runner.status.state, runner.status.error_code) == ("failed", RankLost.code)
    await runner.stop(30.0)
    assert service.log == ["stop 0"]


async def test_a_service_that_is_stopped_does_not_fail_any_more(service: FakeService) -> None:
    runner = ServiceRunner(service)
    await runner.start()
    service.idle.set()
    await runner.stop(1.0)
    service.failure.set_result(RankLost("rank 1 is lost"))
    await asyncio.sleep(0.01)
    assert runner.status.state == "ready"


async def test_it_ends_even_if_draining_fails(service: FakeService) -> None:
    service.drain_problem = RuntimeError("lost count")
    runner = ServiceRunner(service)
    await runner.start()
    with pytest.raises(RuntimeError, match="lost count"):
        await runner.stop(1.0)
    assert service.log == ["drain 1", "stop 0"]
