"""What must not be left half done is done to the end."""

import asyncio

import pytest

from twinflow.workers.handoff.ending import to_the_end


async def test_several_cancellations_take_effect_when_the_work_is_over() -> None:
    go_on, steps = asyncio.Event(), []

    async def work() -> None:
        await go_on.wait()
        await asyncio.sleep(0)
        steps.append("done")

    async def caller() -> None:
        await to_the_end(work())
        steps.append("not cancelled")

    task = asyncio.create_task(caller())
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["done"]


async def test_errors_of_the_work_reach_the_caller() -> None:
    async def work() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await to_the_end(work())


async def test_without_a_cancellation_it_only_waits() -> None:
    done: list[bool] = []

    async def work() -> None:
        done.append(True)

    await to_the_end(work())
    assert done == [True]
