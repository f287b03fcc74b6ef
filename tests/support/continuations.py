"""What follows a prompt: as transformers says, and as a deployment answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from tests.support.deployments import Deployment
from transformers import AutoModelForCausalLM, AutoTokenizer

# Of a whole request, on a machine that does much else.
REQUEST_S = 120.0


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


def continue_with_transformers(
    model: Path, prompts: Sequence[str], max_tokens: int
) -> list[Continuation]:
    """Greedy output in float32, one prompt at a time."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return [_continue(loaded, tokenizer, prompt, max_tokens) for prompt in prompts]


def _continue(model: Any, tokenizer: Any, prompt: str, max_tokens: int) -> Continuation:
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)[0].tolist()
    length = inputs["input_ids"].shape[1]
    text = tokenizer.decode(output[length:], skip_special_tokens=True)
    return Continuation(tuple(output[:length]), tuple(output[length:]), text)


def continue_served(
    deployment: Deployment, prompts: Sequence[str], max_tokens: int
) -> list[Continuation]:
    """Greedy output of a deployment for all prompts in one request."""
    body = {
        "model": deployment.model,
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": max_tokens,
        "return_token_ids": True,
    }
    url = f"{deployment.http_url}/v1/completions"
    response = httpx.post(url, json=body, timeout=REQUEST_S, trust_env=False)
    assert response.status_code == 200, response.text
    return [
        Continuation(tuple(choice["prompt_token_ids"]), tuple(choice["token_ids"]), choice["text"])
        for choice in response.json()["choices"]
    ]
