"""Cleaning up in spite of cancellations, and when only a part of something went well."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


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


async def all_or_none(
    works: Iterable[Coroutine[Any, Any, T]], undo: Callable[[T], Coroutine[Any, Any, None]]
) -> list[T]:
    """The results of all works, which are done at the same time.

    When one fails, or the caller is cancelled, the others are cancelled, and what had ended well is
    undone. Nothing goes on any more when this returns or raises.

    Args:
        works: each of which fails only when nothing of it is left.
        undo: called with the result of each that went well, if another did not.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task in done:
                task.result()
    except BaseException:  # whatever ended it, nothing may be left
        await to_the_end(_undo(tasks, undo))
        raise
    return [task.result() for task in tasks]


async def _undo(
    tasks: "Sequence[asyncio.Future[T]]", undo: Callable[[T], Coroutine[Any, Any, None]]
) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and task.exception() is None:
            await undo(task.result())
