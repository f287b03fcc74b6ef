"""Prompts from text that every machine with Python has: its standard library and its reference.

    code      a piece of a module, to be continued
    copy      a piece of a module and its beginning once more: the rest is known
    summary   a page of the language reference, to be summarised
    question  a short question about a module of the library: nearly all there is to attend to is
              what the model itself has said
    chat      a short question as anybody may ask, in each round others of a list

Each round has pieces of its own, so that what a drafter has learnt from earlier rounds is never
the answer itself. Runs nothing.
"""

import pydoc_data.topics
import random
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from twinflow.runtime.text.tokenizer import Tokenizer

NAMES = ("code", "copy", "summary", "question", "chat")
_ENDS = "<|im_end|>"
_QUESTIONS = (
    "What is the Python module {} good for?",
    "Write a short Python program that uses the module {}.",
    "Name three functions of Python's module {} and say what they do.",
    "Explain Python's module {} to a beginner.",
)
_CHAT = (
    "What is the capital of France?",
    "Explain photosynthesis in two sentences.",
    "Write a Python function that reverses a string.",
    "List three benefits of regular exercise.",
    "Translate to French: The weather is nice today.",
    "Who wrote Romeo and Juliet?",
    "What is 17 plus 25? Explain your steps.",
    "Describe the water cycle briefly.",
    "Give me a recipe for pancakes.",
    "Summarize the plot of Cinderella.",
    "What causes the seasons on Earth?",
    "Write a short poem about the sea.",
    "How does a refrigerator work?",
    "Name five programming languages and one use for each.",
    "What is machine learning?",
    "Write an email asking for a day off.",
    "Explain gravity to a child.",
    "What are the primary colors?",
    "Give three tips for a job interview.",
    "Write a SQL query that selects all users older than 30.",
)
_ASKED = "Summarise the text above in a few sentences."


@dataclass(frozen=True, slots=True)
class TaskSource:
    """Makes prompts.

    Attributes:
        tokenizer: of the model that is served.
        length: tokens of a piece of text.
        seed: of the choice of pieces.
    """

    tokenizer: Tokenizer
    length: int
    seed: int = 0

    def prompts(self, task: str, number: int, count: int) -> list[list[int]]:
        """Some prompts of a task, in a round."""
        if task == "chat":
            chosen = islice(cycle(_CHAT), number * count, (number + 1) * count)
            return [self._encode(self._as_chat(text)) for text in chosen]
        rng = random.Random(f"{self.seed} {task} {number}")
        if task == "question":
            return [self._question(rng) for _ in range(count)]
        texts = _topics() if task == "summary" else _modules()
        return [self._prompt(task, self._piece(rng, texts)) for _ in range(count)]

    def _question(self, rng: random.Random) -> list[int]:
        name = rng.choice(sorted(sys.stdlib_module_names))
        return self._encode(self._as_chat(rng.choice(_QUESTIONS).format(name)))

    def _piece(self, rng: random.Random, texts: Sequence[str]) -> list[int]:
        while True:
            tokens = self._encode(rng.choice(texts))
            if len(tokens) > self.length:
                start = rng.randrange(len(tokens) - self.length)
                return tokens[start : start + self.length]

    def _prompt(self, task: str, piece: list[int]) -> list[int]:
        match task:
            case "code":
                return piece
            case "copy":
                return [*piece, *self._encode("\n\n"), *piece[: self.length // 4]]
            case _:
                text = self.tokenizer.decode(piece)
                return self._encode(self._as_chat(f"{text}\n\n{_ASKED}"))

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _as_chat(self, text: str) -> str:
        """As a conversation, if the model knows the usual marks of one."""
        if len(self._encode(_ENDS)) > 1:
            return f"{text}\n\n"
        return f"<|im_start|>user\n{text}{_ENDS}\n<|im_start|>assistant\n"


def _modules() -> list[str]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in folder.glob("*.py") if 8_000 < path.stat().st_size < 60_000)
    return [path.read_text("utf-8", errors="replace") for path in paths]


def _topics() -> list[str]:
    return [text for _, text in sorted(pydoc_data.topics.topics.items()) if len(text) > 3_000]
