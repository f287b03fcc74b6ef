"""A request's phases account for the time that its client has waited, however it ends."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
TINY_EOS = 2
VARIED = Ask(
    tuple(range(50, 130)),
    SamplingParams(temperature=1, seed=7, max_tokens=100, ignore_eos=True),
)
LONG = Ask((5, 6, 7), SamplingParams(temperature=0, max_tokens=700, ignore_eos=True))
FLAGS = (
    *("--launcher", "local", "--dtype", "float32", "--threads-per-worker", "1"),
    *("--max-model-len", "1200", "--num-kv-blocks", "101", "--max-num-seqs", "8"),
)
TIMED = {"return_timeline": True}
GATEWAY = ["validate", "tokenize", "admit"]
HANDED_OVER = {"queue", "prefill", "transfer", "first_decode", "decode"}
COUNTED = ("queue", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class Timed:
    """An answer with its account of the time.

    Attributes:
        choice: its only one.
        timeline: as the server tells it.
        elapsed_s: as the client has waited.
    """

    choice: Mapping[str, Any]
    timeline: Mapping[str, Any]
    elapsed_s: float


@pytest.fixture(scope="module")
def deployment(tiny_model: Path) -> Iterator[Deployment]:
    with serving(tiny_model, *FLAGS) as deployment:
        yield deployment


def names_of(timeline: Mapping[str, Any]) -> list[str]:
    return [phase["name"] for phase in timeline["phases"]]


def seconds_of(timeline: Mapping[str, Any]) -> list[float]:
    return [phase["seconds"] for phase in timeline["phases"]]


def wire_of(timeline: Mapping[str, Any]) -> float:
    """What nobody has measured; it is zero only if workers claim more time than there was."""
    assert names_of(timeline)[-1] == "wire"
    return seconds_of(timeline)[-1]


def assert_adds_up(timeline: Mapping[str, Any], elapsed_s: float) -> None:
    """No phase is negative, none is claimed twice, and the client has waited that long."""
    assert names_of(timeline)[:3] == GATEWAY
    assert min(seconds_of(timeline)) >= 0
    assert wire_of(timeline) > 0
    assert math.isclose(sum(seconds_of(timeline)), timeline["total_seconds"], rel_tol=0.01)
    assert timeline["total_seconds"] <= elapsed_s


async def timed(client: CompletionsClient, ask: Ask, **fields: Any) -> Timed:
    """The answer to a request, and what the client's own clock says."""
    began = time.monotonic()
    answer = await client.raw(client.body(ask, TIMED | fields))
    elapsed_s = time.monotonic() - began
    assert_adds_up(answer["timeline"], elapsed_s)
    return Timed(answer["choices"][0], answer["timeline"], elapsed_s)


@pytest.mark.slow
async def test_phases_add_up_to_the_total_under_load(deployment: Deployment) -> None:
    async with CompletionsClient(deployment) as client:
        asks = random_asks(100, SHAPE, seed=5)
        answers = await for_each(asks, lambda ask: timed(client, ask), at_once=16)
    handed_over = [answer for answer in answers if set(names_of(answer.timeline)) >= HANDED_OVER]
    assert len(handed_over) > 20


@pytest.mark.slow
async def test_the_phases_are_what_the_client_waits_for(deployment: Deployment) -> None:
    """A request that takes seconds; a busy machine has three chances.

    The workers' phases were measured there, and the wait was measured here: they can only meet if
    both are right.
    """
    accounted = 0.0
    async with CompletionsClient(deployment) as client:
        for _ in range(3):
            answer = await timed(client, LONG)
            measured = answer.timeline["total_seconds"] - wire_of(answer.timeline)
            accounted = max(accounted, measured / answer.elapsed_s)
    assert accounted > 0.97


async def endings(client: CompletionsClient) -> Mapping[str, dict[str, Any]]:
    """Fields that end the same request after a good part of its tokens, each in its own way."""
    whole = (await client.raw(client.body(VARIED)))["choices"][0]["text"]
    middle = len(whole) // 2
    stop = next(
        whole[start : start + 4]
        for start in range(middle, len(whole))
        if whole.find(whole[start : start + 4]) == start
    )
    end_of_text = {"ignore_eos": False, "min_tokens": 60, "logit_bias": {str(TINY_EOS): 100}}
    return {"stop string": {"stop": stop}, "length": {}, "end of text": end_of_text}


@pytest.mark.slow
async def test_every_ending_has_all_phases(deployment: Deployment) -> None:
    """The gateway itself ends an output at a stop string: its worker has not said the last."""
    observed = observations(deployment)
    async with CompletionsClient(deployment) as client:
        chosen = await endings(client)
        for name, fields in chosen.items():
            # With a prefix that no cache has, so that there is a hand-off.
            answer = await timed(client, VARIED, cache_salt=name, **fields)
            assert answer.choice["finish_reason"] == ("length" if name == "length" else "stop")
            assert len(answer.choice["token_ids"]) > 20
            phases = dict(zip(names_of(answer.timeline), seconds_of(answer.timeline), strict=True))
            assert phases.keys() == {*GATEWAY, *HANDED_OVER, "wire"}, name
            for phase in ("prefill", "first_decode", "decode"):
                assert phases[phase] > 0, (name, phase)
    assert observations(deployment) == observed + 1 + len(chosen)


def observations(deployment: Deployment) -> float:
    """How many sequences the histograms of phases have counted."""
    metrics = deployment.scrape()
    counts = {metrics.value(f"vllm:request_{phase}_time_seconds_count") for phase in COUNTED}
    assert len(counts) == 1
    return counts.pop()


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
