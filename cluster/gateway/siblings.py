"""Completions of one prompt, started so that its KV is computed and handed over once.

    first    ─ queue ─ prefill ─ hand-off ─ decode ─┬─ decode ─ …
    others                                          └─ start: the prefix cache has the prompt

Each sampled token depends on its completion's own seed and on its position, so it makes no
difference to the output who went first.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from twinflow.cluster.gateway.generation import CompletionDelta, RunningSequence

Run = Callable[[RunningSequence], AsyncGenerator[CompletionDelta, None]]

# The first token may be there before the worker that decodes has all KV; the second one is
# computed from it.
_TOKENS_WITH_KV_IN_PLACE = 2


def one_first(
    siblings: Sequence[RunningSequence], run: Run
) -> list[AsyncGenerator[CompletionDelta, None]]:
    """The streams of some completions of one prompt; all of them have to be read.

    If the first one ends early, for whatever reason, the others wait no longer.

    Args:
        siblings: at least one.
        run: makes the stream of one of them.
    """
    first, *others = siblings
    in_place = asyncio.Event()
    return [_lead(run(first), in_place), *(_follow(run(s), in_place) for s in others)]


async def _lead(
    stream: AsyncGenerator[CompletionDelta, None], in_place: asyncio.Event
) -> AsyncGenerator[CompletionDelta, None]:
    num_tokens = 0
    try:
        async with aclosing(stream):
            async for delta in stream:
                num_tokens += len(delta.token_ids)
                if num_tokens >= _TOKENS_WITH_KV_IN_PLACE:
                    in_place.set()
                yield delta
    finally:
        in_place.set()


async def _follow(
    stream: AsyncGenerator[CompletionDelta, None], in_place: asyncio.Event
) -> AsyncGenerator[CompletionDelta, None]:
    async with aclosing(stream):
        await in_place.wait()
        async for delta in stream:
            yield delta
