"""SmolLM2 says what transformers makes it say: the same tokens, the same text."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tests.support.deployments import Deployment
from transformers import AutoModelForCausalLM, AutoTokenizer

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
MAX_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Continuation:
    """What follows a prompt.

    Attributes:
        prompt_token_ids: the prompt as the model was fed it.
        token_ids: generated tokens, the one that ended them included.
        text: of these tokens, without special ones.
    """

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str


@pytest.fixture(scope="module")
def expected(real_model: Path) -> list[Continuation]:
    """transformers' greedy output, one prompt at a time."""
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    model = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    return [_continue(model, tokenizer, prompt) for prompt in PROMPTS]


def _continue(model: Any, tokenizer: Any, prompt: str) -> Continuation:
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)[0].tolist()
    length = inputs["input_ids"].shape[1]
    text = tokenizer.decode(output[length:], skip_special_tokens=True)
    return Continuation(tuple(output[:length]), tuple(output[length:]), text)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_offline(real_model: Path, expected: list[Continuation]) -> None:
    llm = LLM(real_model, dtype="float32", max_model_len=256, kv_cache_memory=256 << 20)
    greedy = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    for output, wanted in zip(llm.generate(PROMPTS, greedy, use_tqdm=False), expected, strict=True):
        (completion,) = output.outputs
        got = Continuation(output.prompt_token_ids, completion.token_ids, completion.text)
        assert got == wanted


@pytest.fixture
def http(real_deployment: Deployment) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=real_deployment.http_url, timeout=120, trust_env=False) as client:
        yield client


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_served_by_a_prefill_and_a_decode_worker(
    http: httpx.Client, expected: list[Continuation]
) -> None:
    body = {
        "model": "smollm2-135m",
        "prompt": PROMPTS,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "return_token_ids": True,
    }
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    for choice, wanted in zip(response.json()["choices"], expected, strict=True):
        ids, output_ids = choice["prompt_token_ids"], choice["token_ids"]
        assert Continuation(tuple(ids), tuple(output_ids), choice["text"]) == wanted


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_no_process_gives_way_to_other_programs(real_deployment: Deployment) -> None:
    priorities = {process.nice() for process in real_deployment.processes().values()}
    assert priorities == {os.nice(0)}
