"""Every arrangement of workers gives the same tokens, and so does the offline engine.

200 requests, greedy and sampled, run under load through KV caches so small that requests are
preempted; each has run alone in this process before.
"""

import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.support.completions import Answer, CompletionsClient, for_each
from tests.support.deployments import serving
from tests.support.request_mixes import Ask, MixShape, random_asks
from tests.support.served_models import TINY_VOCAB

from twinflow import LLM

SHAPE = MixShape(vocab_size=TINY_VOCAB, longest_prompt=120, most_tokens=20)
ASKS = random_asks(200, SHAPE, seed=2)
AT_ONCE = 32

TOPOLOGIES = {
    "mixed": ("--mixed", "1"),
    "1P1D": ("--prefill", "1", "--decode", "1"),
    "2P2D": ("--prefill", "2", "--decode", "2"),
}
# Chunks much shorter than prompts, and blocks for about three long requests.
TIGHT = (
    *("--launcher", "local", "--dtype", "float32", "--threads-per-worker", "1"),
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


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("flags", TOPOLOGIES.values(), ids=TOPOLOGIES.keys())
async def test_tokens_do_not_depend_on_the_arrangement(
    tiny_model: Path, expected: list[Answer], flags: tuple[str, ...]
) -> None:
    with serving(tiny_model, *TIGHT, *flags) as deployment:
        async with CompletionsClient(deployment, AT_ONCE) as client:
            answers = await for_each(ASKS, half_of_them_streamed(client), AT_ONCE)
        metrics = deployment.wait_idle()
    for ask, answer, wanted in zip(ASKS, answers, expected, strict=True):
        assert answer == wanted, ask
    assert metrics.finished == metrics.accepted == len(ASKS)
    assert metrics.value("vllm:num_preemptions_total") > 0
    assert metrics.value("vllm:prefix_cache_hits_total") > 0
    assert metrics.value("twinflow:handoffs_failed_total") == 0
    if flags != TOPOLOGIES["mixed"]:
        assert metrics.value("twinflow:handoffs_completed_total") > len(ASKS) / 2
