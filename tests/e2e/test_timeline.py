"""A request's phases add up to the time that it took."""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.support.completions import CompletionsClient, for_each
from tests.support.deployments import Deployment, serving
from tests.support.request_mixes import Ask, MixShape, random_asks
from tests.support.served_models import TINY_VOCAB

from twinflow import AsyncClient, SamplingParams
from twinflow.cluster.client import CallOptions

SHAPE = MixShape(vocab_size=TINY_VOCAB, longest_prompt=100, most_tokens=24)
LONG = Ask((5, 6, 7), SamplingParams(temperature=0, max_tokens=700, ignore_eos=True))
FLAGS = (
    *("--launcher", "local", "--dtype", "float32", "--threads-per-worker", "1"),
    *("--max-model-len", "1200", "--num-kv-blocks", "101", "--max-num-seqs", "8"),
)
TIMED = {"return_timeline": True}
GATEWAY = ["validate", "tokenize", "admit"]
HANDED_OVER = {"queue", "prefill", "transfer", "first_decode", "decode"}


@pytest.fixture(scope="module")
def deployment(tiny_model: Path) -> Iterator[Deployment]:
    with serving(tiny_model, *FLAGS) as deployment:
        yield deployment


def names_of(timeline: Mapping[str, Any]) -> list[str]:
    return [phase["name"] for phase in timeline["phases"]]


def seconds_of(timeline: Mapping[str, Any]) -> list[float]:
    return [phase["seconds"] for phase in timeline["phases"]]


def assert_adds_up(timeline: Mapping[str, Any], elapsed_s: float) -> None:
    assert names_of(timeline)[:3] == GATEWAY
    assert min(seconds_of(timeline)) >= 0
    assert math.isclose(sum(seconds_of(timeline)), timeline["total_seconds"], rel_tol=0.01)
    assert timeline["total_seconds"] <= elapsed_s


@pytest.mark.slow
async def test_phases_add_up_to_the_total_under_load(deployment: Deployment) -> None:
    async def timed(ask: Ask) -> tuple[Mapping[str, Any], float]:
        began = time.monotonic()
        answer = await client.raw(client.body(ask, TIMED))
        return answer["timeline"], time.monotonic() - began

    async with CompletionsClient(deployment) as client:
        timelines = await for_each(random_asks(100, SHAPE, seed=5), timed, at_once=16)
    for timeline, elapsed_s in timelines:
        assert_adds_up(timeline, elapsed_s)
    handed_over = [t for t, _ in timelines if set(names_of(t)) >= HANDED_OVER]
    assert len(handed_over) > 20


@pytest.mark.slow
async def test_the_total_is_what_the_client_sees(deployment: Deployment) -> None:
    """Within 1 %, for a request that takes seconds; a busy machine has three chances."""
    share = 0.0
    chances = 3
    async with CompletionsClient(deployment) as client:
        while share < 0.99 and chances:
            chances -= 1
            began = time.monotonic()
            events = [event async for event in client.events(LONG, **TIMED)]
            elapsed_s = time.monotonic() - began
            assert_adds_up(events[-1]["timeline"], elapsed_s)
            share = events[-1]["timeline"]["total_seconds"] / elapsed_s
    assert share > 0.99


@pytest.mark.slow
async def test_both_doors_tell_the_same_phases(deployment: Deployment) -> None:
    asks = random_asks(2, SHAPE, seed=6)
    async with CompletionsClient(deployment) as http:
        over_http = await http.raw(http.body(asks[0], TIMED))
    async with AsyncClient(deployment.grpc_target) as client:
        over_grpc = await client.generate(
            token_ids=asks[1].prompt, params=asks[1].params, options=CallOptions(timeline=True)
        )
    phases = [phase.name for phase in over_grpc.phases]
    assert phases[:3] == names_of(over_http["timeline"])[:3] == GATEWAY
    assert phases[-1] == names_of(over_http["timeline"])[-1] == "wire"
    assert set(phases) >= {"queue", "prefill"}
