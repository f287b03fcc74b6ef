"""Cleaning up in spite of cancellations."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await something that must not be left half done.

    A cancellation of the caller, or several, takes effect when the work is over.
    """
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError


def look_away(future: "asyncio.Future[Any]") -> None:
    """Nobody waits for a future any more: how it ends, even badly, follows from what is known."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
