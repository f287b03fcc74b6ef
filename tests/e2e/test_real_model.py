"""SmolLM2 says what transformers makes it say: the same tokens, the same text."""

import os
from pathlib import Path

import pytest
from tests.support.continuations import Continuation, continue_served, continue_with_transformers
from tests.support.deployments import Deployment

from twinflow import LLM, SamplingParams

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "The three laws of motion are",
    "Water boils at",
    "To be, or not to be,",
    "A list of prime numbers: 2, 3, 5,",
    "Photosynthesis is the process by which",
    "Die Hauptstadt von Deutschland ist",
    "日本の首都は",
    "import numpy as np\n\nx = ",
    "Dear Sir or Madam,\n\nI am writing to",
    "The quick brown fox",
    "In 1969, astronauts",
    "Ingredients:\n- 2 cups of flour\n-",
    "<|im_start|>user\nWhat is the capital of Italy?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a haiku about rain.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nSay hello in Spanish.<|im_end|>\n<|im_start|>assistant\n",
)
MAX_TOKENS = 16


@pytest.fixture(scope="module")
def expected(real_model: Path) -> list[Continuation]:
    """transformers' greedy output, one prompt at a time."""
    return continue_with_transformers(real_model, PROMPTS, MAX_TOKENS)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_offline(real_model: Path, expected: list[Continuation]) -> None:
    llm = LLM(real_model, dtype="float32", max_model_len=256, kv_cache_memory=256 << 20)
    greedy = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    for output, wanted in zip(llm.generate(PROMPTS, greedy, use_tqdm=False), expected, strict=True):
        (completion,) = output.outputs
        got = Continuation(output.prompt_token_ids, completion.token_ids, completion.text)
        assert got == wanted


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_served_by_a_prefill_and_a_decode_worker(
    real_deployment: Deployment, expected: list[Continuation]
) -> None:
    assert continue_served(real_deployment, PROMPTS, MAX_TOKENS) == expected


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_no_process_gives_way_to_other_programs(real_deployment: Deployment) -> None:
    priorities = {process.nice() for process in real_deployment.processes().values()}
    assert priorities == {os.nice(0)}
