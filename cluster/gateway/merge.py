"""Many streams as one, in the order in which their items come.

    source 0 ─ task ─┐
    source 1 ─ task ─┼─► bounded queue ─► merged stream
    source 2 ─ task ─┘

The queue holds one item per source: a reader that stops holds the sources up. It knows nothing of
tokens.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from twinflow.protos.errors import DeadlineExceeded

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _End:
    """A source ended, by itself or with an error."""

    error: Exception | None = None


async def merge(
    sources: Sequence[AsyncGenerator[T, None]], timeout_s: float
) -> AsyncGenerator[T, None]:
    """Yield the items of all sources until every source has ended.

    The first error of a source ends the stream. Closing the stream closes every source that was
    started; it returns when they are closed.

    Args:
        sources: not started yet.
        timeout_s: time that a source may take, the reader's delays included.

    Raises:
        DeadlineExceeded: a source took longer.
    """
    queue: asyncio.Queue[T | _End] = asyncio.Queue(maxsize=len(sources))
    pumps = [asyncio.create_task(_pump(source, queue, timeout_s)) for source in sources]
    running = len(pumps)
    try:
        while running:
            item = await queue.get()
            if not isinstance(item, _End):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                running -= 1
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    source: AsyncGenerator[T, None], queue: "asyncio.Queue[T | _End]", timeout_s: float
) -> None:
    end = _End()
    try:
        async with asyncio.timeout(timeout_s) as limit, aclosing(source):
            async for item in source:
                await queue.put(item)
    except Exception as error:  # noqa: BLE001 - whatever it is, the reader of the stream gets it
        end = _End(error)
        if isinstance(error, TimeoutError) and limit.expired():
            end = _End(DeadlineExceeded(f"The request did not end within {timeout_s:g} s."))
    await queue.put(end)
