"""Whole workers of several processes: they serve, stop in order, and die as one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from tests.support.checkpoints import write_checkpoint
from tests.support.child_processes import living
from tests.support.rank_workers import RANKED, RankProcess, processes, rank_configs
from tests.support.tiny_models import tiny_state_dict
from tests.support.workers import attached, submission, within

from twinflow.protos.errors import WorkerLost
from twinflow.runtime.llm import LLM
from twinflow.runtime.outputs import FinishReason
from twinflow.runtime.sampling_params import SamplingParams

pytestmark = pytest.mark.slow

ENDLESS = SamplingParams(temperature=0, max_tokens=4000, seed=0, ignore_eos=True)
SETTINGS = {"max_model_len": 8000, "num_kv_blocks": 1200}
# The deployment's bound for noticing that a rank has died or is frozen.
LOSS_S = 5.0
Fault = Callable[[RankProcess], None]
FAULTS = pytest.mark.parametrize("fault", [RankProcess.kill, RankProcess.freeze])


@asynccontextmanager
async def worker(model: Path, size: int) -> AsyncIterator[tuple[str, list[RankProcess]]]:
    """The address of a ready worker, and its ranks."""
    with processes(*rank_configs(model, size, **SETTINGS)) as ranks:
        ready = await asyncio.gather(*(asyncio.to_thread(rank.line) for rank in ranks))
        assert [line.split()[0] for line in ready] == ["ready"] * size, ready
        yield ready[0].split()[1], ranks


async def last_lines(ranks: Sequence[RankProcess]) -> list[str]:
    """The last that ranks say, once their processes have ended by themselves."""

    def last(rank: RankProcess) -> str:
        said = list(iter(rank.line, ""))
        rank.wait()
        return said[-1]

    return await asyncio.gather(*(asyncio.to_thread(last, rank) for rank in ranks))


async def test_a_worker_of_two_ranks_serves_and_stops_in_order(model: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=40, seed=0, ignore_eos=True)
    oracle = LLM(model, dtype="float32", max_model_len=256, num_kv_blocks=64)
    expected = oracle.generate([[5, 6, 7]], params, use_tqdm=False)[0].outputs[0].token_ids
    async with worker(model, 2) as (address, ranks):
        async with attached(address) as gateway:
            answers = await asyncio.gather(
                *(gateway.complete(submission([5, 6, 7], params)) for _ in range(3))
            )
        for answer in answers:
            assert answer.finish_reason is FinishReason.LENGTH
            assert answer.tokens == list(expected)
        for rank in ranks:
            rank.finish()  # a follower waits for rank 0
        assert await last_lines(ranks) == ["ended", "ended"]


@FAULTS
async def test_a_follower_that_dies_or_freezes_in_a_step_takes_the_worker_down(
    model: Path, fault: Fault
) -> None:
    async with worker(model, 2) as (address, ranks), attached(address) as gateway:
        answer = await gateway.submit(submission([5, 6, 7], ENDLESS))
        await within(answer.begun.wait(), "the first token")
        fault(ranks[1])
        async with asyncio.timeout(LOSS_S):
            await answer.done.wait()
        assert isinstance(answer.error, WorkerLost)
        assert "rank 1" in str(answer.error)
        assert "rank 1" in (await last_lines(ranks[:1]))[0]
        if fault is RankProcess.freeze:
            ranks[1].thaw()
            assert "lost rank" in (await last_lines(ranks[1:]))[0]


@pytest.mark.parametrize(("fault", "size"), [(RankProcess.kill, 4), (RankProcess.freeze, 2)])
async def test_a_follower_that_dies_or_freezes_while_idle_takes_the_worker_down(
    model: Path, fault: Fault, size: int
) -> None:
    async with worker(model, size) as (address, ranks), attached(address) as gateway:
        fault(ranks[1])
        async with asyncio.timeout(LOSS_S):
            await gateway.wait_ended()
        for line in await last_lines([ranks[0], *ranks[2:]]):
            assert "rank 1 of mixed-0 is lost" in line


@FAULTS
@pytest.mark.parametrize("busy", [True, False])
async def test_a_leader_that_dies_or_freezes_leaves_no_follower_behind(
    model: Path, fault: Fault, busy: bool
) -> None:
    async with worker(model, 2) as (address, ranks), attached(address) as gateway:
        if busy:
            answer = await gateway.submit(submission([5, 6, 7], ENDLESS))
            await within(answer.begun.wait(), "the first token")
        fault(ranks[0])
        (line,) = await last_lines(ranks[1:])
        assert "lost rank 0" in line or "rank 0 of mixed-0 is lost" in line
        if fault is RankProcess.freeze:
            ranks[0].thaw()
            (line,) = await last_lines(ranks[:1])
            assert line.startswith("lost")


async def test_a_rank_that_cannot_load_ends_the_others(model: Path, tmp_path: Path) -> None:
    leader, follower = rank_configs(model, 2, **SETTINGS)
    other = write_checkpoint(tmp_path / "other", RANKED, tiny_state_dict(RANKED, seed=1))
    with processes(leader, msgspec.structs.replace(follower, model=other)) as ranks:
        lines = await last_lines(ranks)
    assert lines[0].startswith("failed rank 1 of mixed-0 has loaded weights")
    assert lines[1].startswith("lost rank 0 of mixed-0 is lost: it failed: rank 1 of mixed-0 has")


def test_no_process_is_left() -> None:
    assert living() == []
