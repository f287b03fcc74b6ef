"""Workers of several ranks serve the tokens of one process, and are lost as a whole.

Both models have weights that two ranks can share: heads, experts and vocabulary are cut, and sums
over ranks come in another order than sums over columns, so that log-probabilities may differ in
their last digits and tokens may not.
"""

import asyncio
from pathlib import Path

import pytest
from tests.support.checkpoints import write_checkpoint
from tests.support.completions import CompletionsClient, for_each, read_stream
from tests.support.deployments import QUIET_S, Deployment, serving, wait_until
from tests.support.request_mixes import Ask, MixShape, random_asks
from tests.support.served_models import TINY_CONTEXT, TINY_VOCAB
from tests.support.tiny_models import tiny_config
from tests.support.tokenizers import write_chatml_tokenizer

from twinflow import LLM, SamplingParams

SHAPE = MixShape(vocab_size=TINY_VOCAB, longest_prompt=60, most_tokens=16)
ASKS = random_asks(40, SHAPE, seed=5)
FLAGS = ("--launcher", "local", "--dtype", "float32", "--threads-per-worker", "1")
ONE_WORKER = ("--mixed", "1", "--tensor-parallel-size", "2")
# Requests wait for blocks, and chunks are shorter than prompts.
TIGHT = (
    *("--max-model-len", "96", "--block-size", "8", "--num-kv-blocks", "25"),
    *("--max-num-seqs", "8", "--max-num-batched-tokens", "32"),
)
ROOMY = ("--max-model-len", "8192", "--num-kv-blocks", "600")
LONG = Ask((5, 6, 7), SamplingParams(temperature=0, max_tokens=300, ignore_eos=True))
# By then a worker that has lost a rank is out of its pool.
LOSS_S = 5.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def write_model(directory: Path, architecture: str) -> Path:
    """A random model that reads and writes ChatML."""
    config = tiny_config(architecture, vocab_size=TINY_VOCAB, max_position=TINY_CONTEXT)
    write_checkpoint(directory, config)
    return write_chatml_tokenizer(directory)


@pytest.mark.parametrize(
    ("architecture", "flags", "processes"),
    [
        ("LlamaForCausalLM", ONE_WORKER, 2),
        ("LlamaForCausalLM", ("--prefill-tensor-parallel-size", "2"), 3),
        ("Qwen3MoeForCausalLM", (*ONE_WORKER, "--enable-expert-parallel"), 2),
    ],
    ids=["dense", "pools", "expert parallel"],
)
async def test_tokens_are_those_of_one_process(
    tmp_path: Path, architecture: str, flags: tuple[str, ...], processes: int
) -> None:
    model = write_model(tmp_path / "model", architecture)
    llm = LLM(model, dtype="float32", max_model_len=96, num_kv_blocks=64)
    outputs = [llm.generate([ask.prompt], ask.params, use_tqdm=False)[0] for ask in ASKS]
    with serving(model, *FLAGS, *TIGHT, *flags) as deployment:
        assert "  1 worker of 2 ranks: " in deployment.log
        assert len(deployment.workers) == processes
        async with CompletionsClient(deployment) as client:
            answers = await for_each(ASKS, client.whole, 16)
        metrics = deployment.wait_idle()
    for ask, answer, output in zip(ASKS, answers, outputs, strict=True):
        (wanted,) = output.outputs
        assert answer.token_ids == wanted.token_ids, ask
        assert (answer.text, answer.finish_reason) == (wanted.text, wanted.finish_reason.value)
        expected = [entry.logprob for entry in wanted.logprobs]
        assert answer.logprobs == pytest.approx(expected, abs=1e-4)
    assert metrics.finished == len(ASKS)
    assert metrics.value("twinflow:worker_ranks") == processes
    assert metrics.value("twinflow:handoffs_failed_total") == 0


async def test_a_rank_of_the_only_worker_freezes(tiny_model: Path) -> None:
    """All of it is replaced, and its stream goes on there."""
    llm = LLM(tiny_model, dtype="float32", max_model_len=512, num_kv_blocks=40)
    (output,) = llm.generate([LONG.prompt], LONG.params, use_tqdm=False)
    with serving(tiny_model, *FLAGS, *ONE_WORKER, *ROOMY) as deployment:
        began, before = asyncio.Event(), deployment.workers
        reading = asyncio.create_task(read_stream(deployment, LONG, began))
        await asyncio.wait_for(began.wait(), QUIET_S)
        before[0].suspend()
        await leaves_the_pool(deployment, "mixed-0")
        assert await reading == output.outputs[0].token_ids
        assert "mixed-0 is lost: " in deployment.log
        assert not {process.pid for process in before} & deployment.processes().keys()


async def test_requests_of_a_worker_that_lost_a_rank_go_on_elsewhere(tiny_model: Path) -> None:
    llm = LLM(tiny_model, dtype="float32", max_model_len=512, num_kv_blocks=40)
    (output,) = llm.generate([LONG.prompt], LONG.params, use_tqdm=False)
    flags = (*FLAGS, *ROOMY, *ONE_WORKER, "--mixed", "2")
    with serving(tiny_model, *flags) as deployment:
        assert len(deployment.workers) == 4
        begun = [asyncio.Event() for _ in range(4)]
        reading = [asyncio.create_task(read_stream(deployment, LONG, event)) for event in begun]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), QUIET_S)
        deployment.workers[1].kill()
        await leaves_the_pool(deployment, "mixed-0")
        for tokens in await asyncio.gather(*reading):
            assert tokens == output.outputs[0].token_ids
        assert "sequence moves to another worker" in deployment.log
        assert "mixed-0 is lost: " in deployment.log


async def leaves_the_pool(deployment: Deployment, worker: str) -> None:
    """Wait until the gateway says that it has lost a worker."""

    def lost() -> bool:
        lines = [line for line in deployment.log.splitlines() if worker in line]
        return any("worker is not available" in line for line in lines)

    await asyncio.to_thread(
        wait_until, lost, f"{worker} to leave the pool", LOSS_S, lambda: deployment.log[-3000:]
    )


@pytest.mark.parametrize("launcher", ["local", "ray"])
def test_ranks_end_with_the_command(tiny_model: Path, launcher: str) -> None:
    flags = ("--launcher", launcher, "--dtype", "float32", *ROOMY)
    with serving(tiny_model, *flags, *ONE_WORKER) as deployment:
        assert "1 worker of 2 ranks: mixed-0" in deployment.log
        deployment.stop()
        assert "Killing" not in deployment.log


def test_heads_that_cannot_be_cut_are_told_before_anything_is_served(tiny_model: Path) -> None:
    deployment = Deployment(tiny_model, *FLAGS, "--mixed", "1", "--tensor-parallel-size", "4")
    try:
        deployment.wait_ended(2)
        message = "6 query heads and 2 key/value heads cannot be shared by 4 ranks"
        assert message in deployment.log
    finally:
        deployment.kill()
