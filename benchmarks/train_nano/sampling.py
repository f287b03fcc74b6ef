"""Continuations of prompts, by transformers from an exported directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = (
    "class Stack:\n    def __init__(self):\n",
    'def read_lines(path):\n    """Return the lines of a file.',
    "import os\nimport sys\n\ndef main(",
    "class ParserTest(unittest.TestCase):\n\n    def test_",
)
TEMPERATURE = 0.8
TOP_P = 0.95


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a model made of a prompt.

    Attributes:
        prompt: given.
        text: added by the model.
        greedy: the likeliest token every time, else drawn at `TEMPERATURE` and `TOP_P`.
    """

    prompt: str
    text: str
    greedy: bool


class Sampler:
    """Continues text with the model of a directory, in float32 on the CPU.

    Args:
        directory: an exported model.
    """

    def __init__(self, directory: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        # Any: transformers' own annotations of `generate` do not accept its models.
        self._model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)

    def __call__(self, prompt: str, tokens: int, seed: int | None = None) -> Continuation:
        """`tokens` more tokens, unless the text ends; greedy without a seed."""
        given = self._tokenizer(prompt, return_tensors="pt")
        greedy = seed is None
        chosen: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": not greedy}
        if seed is not None:
            torch.manual_seed(seed)
            chosen |= {"temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0}
        out = self._model.generate(**given, **chosen)
        added = out[0, given["input_ids"].shape[1] :]
        return Continuation(prompt, str(self._tokenizer.decode(added)), greedy)
