"""What a contestant's process reads and writes: one line of JSON for each order and answer.

The first argument is a JSON object of settings. When the engine is ready the process says so, and
from then on answers orders until its input ends. Answers have a file descriptor of their own:
whatever an engine prints goes to standard error.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Tokens = list[int]


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine is started with.

    Attributes:
        model: a directory, or a file where the engine wants one.
        variant: which form of the engine, such as a dtype.
        threads: that it may use.
        max_tokens: longest sequence.
        max_sequences: that are generated together.
        total_tokens: of all sequences that are generated together.
    """

    model: str
    variant: str
    threads: int
    max_tokens: int
    max_sequences: int
    total_tokens: int


class Engine(Protocol):
    """A model, loaded."""

    @property
    def version(self) -> str:
        """Of the engine."""
        ...

    def generate(self, prompts: Sequence[Tokens], count: int) -> Sequence[Tokens]:
        """Continue all prompts together, greedily, by exactly `count` tokens each.

        Nothing of an earlier call may be used again, such as a cached prompt.
        """
        ...


def serve(build: Callable[[Settings], Engine]) -> None:
    """Make an engine and answer orders: prompts and a count in, seconds and tokens out."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    engine = build(Settings(**json.loads(sys.argv[1])))
    say({"version": engine.version})
    for line in sys.stdin:
        order = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = engine.generate(order["prompts"], order["count"])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        say({"wall_s": wall, "cpu_s": cpu, "tokens": [list(each) for each in tokens]})
