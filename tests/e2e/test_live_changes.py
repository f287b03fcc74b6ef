"""Pools change while requests run: none fails, and no token is another one."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.completions import Answer, CompletionsClient
from tests.support.deployments import QUIET_S, Deployment, serving
from tests.support.request_mixes import MixShape, random_asks
from tests.support.served_models import TINY_VOCAB

from twinflow import LLM, Admin
from twinflow.cluster.client.cluster_view import Cluster

TOKEN = "let-me-in"
FLAGS = (
    *("--launcher", "local", "--dtype", "float32", "--max-model-len", "256"),
    *("--block-size", "8", "--num-kv-blocks", "200", "--threads-per-worker", "1"),
    *("--admin-token", TOKEN),
)
ASKS = random_asks(24, MixShape(vocab_size=TINY_VOCAB, longest_prompt=100, most_tokens=60), seed=7)
# Requests that run at any moment.
STREAMS = 3
# Many times the seats of the workers that are to be too few.
MOST_WAITING = 64

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Load:
    """Requests without a pause, whose answers must be the expected ones.

    Attributes:
        answered: how many were.
    """

    def __init__(self, deployment: Deployment, expected: list[Answer]) -> None:
        self._client = CompletionsClient(deployment)
        self._expected = expected
        self._over = False
        self.answered = 0

    async def run(self) -> None:
        """Ask until it is over."""
        async with self._client:
            await asyncio.gather(*(self._stream(number) for number in range(STREAMS)))

    async def _stream(self, number: int) -> None:
        while not self._over:
            index = number % len(ASKS)
            ask, number = ASKS[index], number + STREAMS
            assert await self._client.streamed(ask) == self._expected[index]
            self.answered += 1

    def end(self) -> None:
        """Ask no more."""
        self._over = True


def answers(model: Path) -> list[Answer]:
    """What one process generates, offline."""
    llm = LLM(model, dtype="float32", max_model_len=256, num_kv_blocks=200)
    outputs = [llm.generate([ask.prompt], ask.params, use_tqdm=False)[0] for ask in ASKS]
    return [Answer.of(output) for output in outputs]


def sizes(cluster: Cluster) -> tuple[int, int]:
    """Serving prefill and decode workers."""
    found = {pool.role: pool.serving for pool in cluster.pools}
    return found["prefill"], found["decode"]


async def test_pools_change_under_load(tiny_model: Path) -> None:
    expected = await asyncio.to_thread(answers, tiny_model)
    with (
        serving(tiny_model, *FLAGS) as deployment,
        Admin(deployment.grpc_target, token=TOKEN, timeout_s=100.0) as admin,
    ):
        load = Load(deployment, expected)
        running = asyncio.create_task(load.run())
        changes: list[tuple[Callable[[], Cluster], tuple[int, int]]] = [
            (lambda: admin.pools.scale("decode", 2), (1, 2)),
            (lambda: admin.workers.flip("decode-1", role="prefill"), (2, 1)),
            (lambda: admin.workers.flip("decode-1", role="decode"), (1, 2)),
            (lambda: admin.pools.scale("decode", 1, drain="migrate"), (1, 1)),
            (lambda: admin.pools.scale("prefill", 2), (2, 1)),
            (lambda: admin.pools.scale("prefill", 1), (1, 1)),
            (lambda: admin.restart(drain="migrate"), (1, 1)),
        ]
        for change, serving_then in changes:
            before = load.answered
            assert sizes(await asyncio.to_thread(change)) == serving_then
            async with asyncio.timeout(QUIET_S):
                while load.answered < before + 2 * STREAMS:
                    if running.done():
                        await running  # which raises
                    await asyncio.sleep(0.02)
        load.end()
        await running
        async with CompletionsClient(deployment) as client:
            content = await client.raw(client.body(ASKS[0]))
        (story,) = admin.requests.explain(content["id"]).sequences
        assert [attempt.outcome for attempt in story.attempts] == ["finished"]
        metrics = deployment.wait_idle()
        assert metrics.failed == metrics.aborted == 0
        assert metrics.finished == load.answered + 1
        assert metrics.workers == {worker.worker_id for worker in admin.workers.list()}


async def test_a_pool_grows_by_itself_under_load(tiny_model: Path) -> None:
    """Requests come at their times, whoever has answered, but for a bound on those that wait: a
    busy machine must get round to starting a worker.

    It would shrink after minutes of calm; `tests/cluster` shows that without waiting for them.
    """
    expected = await asyncio.to_thread(answers, tiny_model)
    flags = (*FLAGS, "--max-num-seqs", "4")
    with (
        serving(tiny_model, *flags) as deployment,
        Admin(deployment.grpc_target, token=TOKEN, timeout_s=100.0) as admin,
    ):
        await asyncio.to_thread(admin.pools.autoscale, "decode", min=1, max=2, tpot_ms=1000)
        coming: set[asyncio.Task[None]] = set()
        answered = 0
        async with CompletionsClient(deployment) as client:

            async def ask(number: int) -> None:
                nonlocal answered
                index = number % len(ASKS)
                assert await client.streamed(ASKS[index]) == expected[index]
                answered += 1

            number = 0
            async with asyncio.timeout(6 * QUIET_S):
                while sizes(await asyncio.to_thread(admin.cluster)) != (1, 2):
                    if number < answered + MOST_WAITING:
                        coming.add(asyncio.create_task(ask(number)))
                        number += 1
                    await asyncio.sleep(0.02)
            await asyncio.gather(*coming)
        told = {pool.role: pool for pool in admin.cluster().pools}["decode"]
        assert (told.grown, told.shrunk) == (1, 0)
        metrics = deployment.wait_idle()
        assert metrics.failed == metrics.aborted == 0
        assert metrics.finished == answered
