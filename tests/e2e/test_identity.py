"""Every arrangement of workers gives the same tokens, and so does the offline engine.

200 requests, greedy and sampled, run under load through KV caches so small that requests are
preempted; each has run alone in this process before.
"""

import itertools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from tests.support.completions import Answer, CompletionsClient, for_each
from tests.support.deployments import Deployment, serving
from tests.support.request_mixes import Ask, MixShape, random_asks
from tests.support.served_models import TINY_VOCAB

from twinflow import LLM
from twinflow.cluster.chaos.scrape import Scrape
from twinflow.parallel.partition.record import read_decisions, replay

SHAPE = MixShape(vocab_size=TINY_VOCAB, longest_prompt=120, most_tokens=20)
ASKS = random_asks(200, SHAPE, seed=2)
AT_ONCE = 32

TOPOLOGIES = {
    "mixed": ("--mixed", "1"),
    "1P1D": ("--prefill", "1", "--decode", "1"),
    "2P2D": ("--prefill", "2", "--decode", "2"),
}
LANES = ("--mixed", "1", "--lanes", "cores")
# Chunks much shorter than prompts, and blocks for about three long requests.
TIGHT = (
    *("--launcher", "local", "--dtype", "float32"),
    *("--max-model-len", "160", "--block-size", "8", "--num-kv-blocks", "61"),
    *("--max-num-seqs", "16", "--max-num-batched-tokens", "48"),
)


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> list[Answer]:
    """The answers of an engine in this process, one request after the other."""
    llm = LLM(tiny_model, dtype="float32", max_model_len=160, num_kv_blocks=64)
    outputs = [llm.generate([ask.prompt], ask.params, use_tqdm=False)[0] for ask in ASKS]
    return [Answer.of(output) for output in outputs]


def half_of_them_streamed(client: CompletionsClient) -> Callable[[Ask], Awaitable[Answer]]:
    turns = itertools.cycle((client.whole, client.streamed))
    return lambda ask: next(turns)(ask)


async def play(deployment: Deployment, expected: list[Answer]) -> Scrape:
    """Ask for everything at once, and compare; returns the metrics afterwards."""
    async with CompletionsClient(deployment, AT_ONCE) as client:
        answers = await for_each(ASKS, half_of_them_streamed(client), AT_ONCE)
    metrics = deployment.wait_idle()
    for ask, answer, wanted in zip(ASKS, answers, expected, strict=True):
        assert answer == wanted, ask
    assert metrics.finished == metrics.accepted == len(ASKS)
    assert metrics.value("vllm:num_preemptions_total") > 0
    assert metrics.value("vllm:prefix_cache_hits_total") > 0
    return metrics


def lanes_of(deployment: Deployment) -> dict[str, str]:
    """What the only worker says about its lanes."""
    answer = httpx.get(f"{deployment.http_url}/server_info").json()
    (worker,) = answer["workers"]
    assert (worker["worker_id"], worker["role"], worker["up"]) == ("mixed-0", "mixed", True)
    found: dict[str, str] = worker["lanes"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("flags", TOPOLOGIES.values(), ids=TOPOLOGIES.keys())
async def test_tokens_do_not_depend_on_the_arrangement(
    tiny_model: Path, expected: list[Answer], flags: tuple[str, ...]
) -> None:
    with serving(tiny_model, *TIGHT, "--threads-per-worker", "1", *flags) as deployment:
        metrics = await play(deployment, expected)
    assert metrics.value("twinflow:lanes", backend="none") == len(metrics.workers)
    completed = metrics.value("twinflow:handoffs_completed_total")
    if flags != TOPOLOGIES["mixed"]:
        assert completed > len(ASKS) / 2
    # Where the machine stands still for seconds, a few miss their deadline and are made again.
    assert metrics.value("twinflow:handoffs_failed_total") <= completed / 10


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_tokens_do_not_depend_on_lanes(
    tiny_model: Path, expected: list[Answer], tmp_path: Path
) -> None:
    """What the lanes decide while they serve is written down, and can be made again."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("lanes on processor cores need two")
    flags = ("--threads-per-worker", "2", "--lane-decisions", str(tmp_path))
    with serving(tiny_model, *TIGHT, *LANES, *flags) as deployment:
        metrics = await play(deployment, expected)
        lanes = lanes_of(deployment)
    assert (lanes["wanted"], lanes["backend"], lanes["reason"]) == ("cores", "cores", "")
    assert lanes["description"].startswith("2 processor cores; the split stays")
    assert metrics.value("twinflow:lanes", backend="cores") == 2
    assert metrics.value("twinflow:lane_switches_total") > 0
    assert metrics.value("twinflow:lanes_both_seconds_total") > 0
    steps = [
        metrics.value("twinflow:lane_steps_total", lane=lane) for lane in ("prefill", "decode")
    ]
    assert min(steps) > 0
    assert sum(steps) == metrics.value("twinflow:worker_steps_total")
    setup, decisions = read_decisions(tmp_path / "mixed-0-1.jsonl")
    assert setup.grid.processors == 2
    assert len(decisions) >= sum(steps)
    assert [replay(setup, decision) for decision in decisions] == decisions


@pytest.mark.slow
async def test_lanes_that_cannot_be_had_are_missed_by_nobody(tiny_model: Path) -> None:
    with serving(tiny_model, *TIGHT, *LANES, "--threads-per-worker", "1") as deployment:
        async with CompletionsClient(deployment, 1) as client:
            assert (await client.whole(ASKS[0])).token_ids
        lanes, metrics = lanes_of(deployment), deployment.wait_idle()
        log = deployment.log
    reason = "two lanes need two processor cores, and the worker has 1"
    assert (lanes["wanted"], lanes["backend"], lanes["reason"]) == ("cores", "none", reason)
    assert log.count(reason) == 1
    assert metrics.value("twinflow:lanes", backend="none") == 1
