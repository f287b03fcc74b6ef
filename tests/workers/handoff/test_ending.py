"""What must not be left half done is done to the end."""

import asyncio

import pytest

from twinflow.workers.handoff.ending import all_or_none, to_the_end


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


class Works:
    """Coroutines that end when they are told, and what became of them."""

    def __init__(self) -> None:
        self.go_on: dict[str, asyncio.Event] = {}
        self.cancelled: list[str] = []
        self.undone: list[str] = []

    async def work(self, name: str, error: Exception | None = None) -> str:
        self.go_on[name] = asyncio.Event()
        try:
            await self.go_on[name].wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)  # becomes quiet
            self.cancelled.append(name)
            raise
        if error is not None:
            raise error
        return name

    async def undo(self, name: str) -> None:
        self.undone.append(name)


async def test_all_or_none_returns_all_results_in_order() -> None:
    works = Works()
    task = asyncio.create_task(all_or_none([works.work("a"), works.work("b")], works.undo))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    works.go_on["b"].set()
    works.go_on["a"].set()
    assert await task == ["a", "b"]
    assert works.undone == works.cancelled == []


async def test_one_failure_cancels_the_others_and_undoes_what_had_ended() -> None:
    works = Works()
    all_works = [works.work("a"), works.work("b", ValueError("broken")), works.work("c")]
    task = asyncio.create_task(all_or_none(all_works, works.undo))
    await asyncio.sleep(0.001)
    works.go_on["c"].set()
    await asyncio.sleep(0.001)
    works.go_on["b"].set()
    with pytest.raises(ValueError, match="broken"):
        await task
    assert (works.cancelled, works.undone) == (["a"], ["c"])


async def test_a_cancelled_caller_leaves_nothing_behind() -> None:
    works = Works()
    task = asyncio.create_task(all_or_none([works.work("a"), works.work("b")], works.undo))
    await asyncio.sleep(0.001)
    works.go_on["a"].set()
    await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (works.cancelled, works.undone) == (["b"], ["a"])
