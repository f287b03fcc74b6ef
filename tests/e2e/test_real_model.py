"""SmolLM2, the model that `make` fetches, against transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from twinflow import LLM, SamplingParams

MODEL = Path(__file__).resolve().parents[2] / ".models" / "smollm2-135m"
NEW_TOKENS = 24
QUESTIONS = (
    "What is the capital of France?",
    "Name three prime numbers.",
    "Write a haiku about rain.",
    "Explain gravity to a child.",
    "Translate 'good morning' into Spanish.",
    "What is 12 times 12?",
    "Who wrote Hamlet?",
    "List the planets of the solar system.",
    "How do I boil an egg?",
    "What does HTTP stand for?",
)
OPENINGS = (
    "Once upon a time",
    "The quick brown fox",
    "def fibonacci(n):",
    "In 1969, humans first",
    "The chemical symbol for gold is",
    "Dear Sir or Madam,",
    "1, 1, 2, 3, 5, 8,",
    "It was the best of times,",
    "To make pancakes, you need",
    "The opposite of hot is",
)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_greedy_tokens_and_text_are_those_of_transformers() -> None:
    """20 prompts in float32, all of them in one batch here and one by one there."""
    assert MODEL.is_dir(), f"{MODEL} is missing: run `make model`"
    chats = [f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in QUESTIONS]
    llm = LLM(MODEL, dtype="float32", max_model_len=512, kv_cache_memory=1 << 28)
    prompts = [llm.tokenizer.encode(text) for text in (*chats, *OPENINGS)]
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    decode = llm.tokenizer.decode
    reference: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            full = reference.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        expected = full[0, len(prompt) :].tolist()
        assert list(output.outputs[0].token_ids) == expected
        assert output.outputs[0].text == decode(expected)
