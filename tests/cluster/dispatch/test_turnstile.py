"""Sequences wait for their turn, are let through one after the other, or are late."""

import asyncio

import pytest
from tests.support.dispatchers import create_spec

from twinflow.cluster.dispatch.turnstile import Turnstile, TurnstileConfig
from twinflow.cluster.gateway.backend import GenerationSpec
from twinflow.protos.errors import DeadlineExceeded


def spec(key: str, prompt: int = 10) -> GenerationSpec:
    return create_spec(prompt=prompt, api_key_id=key)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_keys_take_turns() -> None:
    turnstile = Turnstile(TurnstileConfig(10))
    order: list[str] = []

    async def pass_through(one: GenerationSpec) -> None:
        await turnstile.enter(one, 60.0)
        order.append(one.api_key_id)
        await settled()
        turnstile.leave(one)

    first = spec("z")
    await turnstile.enter(first, 60.0)
    async with asyncio.TaskGroup() as tasks:
        for key in ("a", "a", "a", "a", "b", "b"):
            tasks.create_task(pass_through(spec(key)))
        await settled()
        assert order == []
        turnstile.leave(first)
    assert order == ["a", "b", "a", "b", "a", "a"]
    turnstile.check_integrity(())
    assert turnstile.tokens == len(turnstile.queue) == 0


async def test_a_prompt_that_is_longer_than_the_bound_goes_alone() -> None:
    turnstile = Turnstile(TurnstileConfig(10))
    long, short = spec("a", 50), spec("b", 5)
    await turnstile.enter(long, 60.0)
    waiting = asyncio.create_task(turnstile.enter(short, 60.0))
    await settled()
    assert not waiting.done()
    turnstile.leave(long)
    await waiting
    turnstile.leave(short)
    turnstile.leave(short)
    assert turnstile.tokens == 0


async def test_who_is_late_or_gone_is_not_let_through() -> None:
    turnstile = Turnstile(TurnstileConfig(10))
    first, late, gone = spec("a"), spec("b"), spec("b")
    await turnstile.enter(first, 60.0)
    with pytest.raises(DeadlineExceeded, match="before it was its turn"):
        await turnstile.enter(late, 0.01)
    leaving = asyncio.create_task(turnstile.enter(gone, 60.0))
    await settled()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    with pytest.raises(AssertionError, match="still have a turn"):
        turnstile.check_integrity(())
    turnstile.leave(first)
    turnstile.check_integrity(())
    assert len(turnstile.queue) == 0


async def test_without_a_bound_nobody_waits() -> None:
    turnstile = Turnstile(TurnstileConfig())
    for _ in range(3):
        await turnstile.enter(spec("a", 1000), 0.001)
    assert turnstile.tokens == 0
