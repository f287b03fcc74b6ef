"""Completions of one prompt: one hand-off, and the tokens of separate requests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.completions import CompletionsClient
from tests.support.deployments import QUIET_S, Deployment, serving, wait_until
from tests.support.request_mixes import Ask

from twinflow.runtime.sampling_params import SamplingParams, completion_seed

FLAGS = (
    *("--launcher", "local", "--dtype", "float32", "--threads-per-worker", "1"),
    *("--max-model-len", "1200", "--num-kv-blocks", "201", "--max-num-seqs", "16"),
)
PROMPT = tuple(range(10, 210))
SEED, COMPLETIONS = 11, 4


@pytest.fixture(scope="module")
def deployment(tiny_model: Path) -> Iterator[Deployment]:
    with serving(tiny_model, *FLAGS) as deployment:
        yield deployment


def ask(seed: int) -> Ask:
    return Ask(PROMPT, SamplingParams(temperature=1, seed=seed, max_tokens=40, ignore_eos=True))


def handoffs(deployment: Deployment) -> float:
    """Hand-offs so far, however they went; workers report twice a second."""
    metrics = deployment.wait_idle()
    return sum(
        metrics.value(f"twinflow:handoffs_{outcome}_total") for outcome in ("completed", "failed")
    )


@pytest.mark.slow
async def test_one_hand_off_and_the_tokens_of_separate_requests(deployment: Deployment) -> None:
    before = handoffs(deployment)
    async with CompletionsClient(deployment) as client:
        fields = {"n": COMPLETIONS, "cache_salt": "together"}
        together = await client.raw(client.body(ask(SEED), fields))
        wait_until(lambda: handoffs(deployment) > before, "the hand-off to be reported", QUIET_S)
        assert handoffs(deployment) == before + 1
        alone = [
            (await client.whole(ask(completion_seed(SEED, index)), cache_salt=f"alone-{index}"))
            for index in range(COMPLETIONS)
        ]
    tokens = [tuple(choice["token_ids"]) for choice in together["choices"]]
    assert tokens == [answer.token_ids for answer in alone]
    assert len(set(tokens)) == COMPLETIONS
    assert together["usage"]["prompt_tokens"] == len(PROMPT)
    assert handoffs(deployment) == before + 1 + COMPLETIONS
