"""Many streams as one."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from twinflow.cluster.gateway.merge import merge
from twinflow.protos.errors import DeadlineExceeded, WorkerLost

TIMEOUT_S = 30.0


class Source:
    """Counts from 0; knows how far it came and whether it was closed."""

    def __init__(self, name: str, count: int, error: Exception | None = None) -> None:
        self.name = name
        self.yielded = 0
        self.closed = False
        self.stream = self._run(count, error)

    async def _run(self, count: int, error: Exception | None) -> AsyncGenerator[str, None]:
        try:
            for number in range(count):
                await asyncio.sleep(0)
                self.yielded += 1
                yield f"{self.name}{number}"
            if error is not None:
                raise error
        finally:
            self.closed = True


async def test_every_source_keeps_its_order() -> None:
    sources = [Source(name, count) for name, count in (("a", 3), ("b", 0), ("c", 5))]
    items = [item async for item in merge([source.stream for source in sources], TIMEOUT_S)]
    assert sorted(items) == ["a0", "a1", "a2", "c0", "c1", "c2", "c3", "c4"]
    for name in "ac":
        mine = [item for item in items if item.startswith(name)]
        assert mine == sorted(mine)
    assert all(source.closed for source in sources)


async def test_an_error_ends_the_stream_and_closes_the_others() -> None:
    endless, broken = Source("a", 10**9), Source("b", 2, WorkerLost("gone"))
    with pytest.raises(WorkerLost, match="gone"):
        async for _ in merge([endless.stream, broken.stream], TIMEOUT_S):
            pass
    assert endless.closed
    assert broken.closed


async def test_closing_closes_what_was_started() -> None:
    sources = [Source("a", 10**9), Source("b", 10**9)]
    async with aclosing(merge([source.stream for source in sources], TIMEOUT_S)) as merged:
        await anext(merged)
    assert all(source.closed for source in sources)


async def test_closing_before_the_start_starts_nothing() -> None:
    source = Source("a", 5)
    await merge([source.stream], TIMEOUT_S).aclose()
    assert source.yielded == 0
    await source.stream.aclose()


async def test_a_reader_that_stops_holds_the_sources_up() -> None:
    source = Source("a", 10**9)
    async with aclosing(merge([source.stream], TIMEOUT_S)) as merged:
        await anext(merged)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert source.yielded <= 4


async def test_cancelling_the_reader_closes_the_sources() -> None:
    source = Source("a", 10**9)

    async def read() -> None:
        async for _ in merge([source.stream], TIMEOUT_S):
            await asyncio.sleep(0)

    reader = asyncio.create_task(read())
    while source.yielded < 3:
        await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    while not source.closed:
        await asyncio.sleep(0)


async def test_a_source_that_takes_too_long() -> None:
    async def stuck() -> AsyncGenerator[str, None]:
        await asyncio.Event().wait()
        yield "never"

    with pytest.raises(DeadlineExceeded, match="did not end"):
        async for _ in merge([stuck()], 0.05):
            pass


async def test_a_sources_own_timeout_is_its_own_error() -> None:
    broken = Source("a", 1, TimeoutError("mine"))
    with pytest.raises(TimeoutError, match="mine"):
        async for _ in merge([broken.stream], TIMEOUT_S):
            pass
