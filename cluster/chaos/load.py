"""Requests at times drawn beforehand, whether or not earlier ones were answered.

What is asked is one of a few prompts, so that what must be answered is known. Most requests have a
cache salt of their own: their prompts are computed and handed over, not found in a cache.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twinflow.cluster.chaos.history import RequestRecord
from twinflow.cluster.chaos.stream import Asking, Endpoint, ask

_WORDS = (
    *("time", "river", "stone", "light", "winter", "garden", "music", "letter", "window"),
    *("morning", "silver", "number", "paper", "ocean", "story", "forest", "bridge", "summer"),
    *("engine", "market", "shadow", "colour", "answer", "planet", "machine", "village"),
)
_PROMPT_WORDS = (4, 120)
_OUTPUT_TOKENS = (16, 64)
_SHARED_CACHE = 0.25
_NONSENSE: tuple[Asking, ...] = (
    {"max_tokens": -1},
    {"temperature": "hot"},
    {"prompt": []},
    {"model": "nobody"},
    {"top_p": 7},
    {"stop": ["a"] * 1000},
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Something that is asked for.

    Attributes:
        text: of the prompt.
        max_tokens: that are generated.
        temperature: 0 for the likeliest tokens.
        seed: of the tokens that are drawn.
    """

    text: str
    max_tokens: int
    temperature: float
    seed: int


def draw_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """Prompts of many lengths, half of them answered greedily."""
    rng = random.Random(seed)
    return [
        Prompt(
            text=" ".join(rng.choices(_WORDS, k=rng.randint(*_PROMPT_WORDS))),
            max_tokens=rng.randint(*_OUTPUT_TOKENS),
            temperature=rng.choice((0.0, 0.8)),
            seed=rng.getrandbits(31),
        )
        for _ in range(count)
    ]


def asking(prompt: Prompt, model: str, salt: str, *, stream: bool = True) -> Asking:
    """The body of a request for a prompt."""
    fields: Asking = {
        "model": model,
        "prompt": prompt.text,
        "max_tokens": prompt.max_tokens,
        "temperature": prompt.temperature,
        "seed": prompt.seed,
        "ignore_eos": True,
        "return_token_ids": True,
        "cache_salt": salt,
        "stream": stream,
    }
    return fields | {"stream_options": {"include_usage": True}} if stream else fields


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadShape:
    """How requests come.

    Attributes:
        rate: of them in a second, on average.
        patience_s: how long a client waits for the next byte.
        leaving: share of the clients that go away after some tokens.
        bad: share of the requests that no server should serve.
    """

    rate: float = 4.0
    patience_s: float = 60.0
    leaving: float = 0.0
    bad: float = 0.0


class Load:
    """Sends requests until it is told to stop.

    Args:
        endpoint: where to.
        model: whose name requests carry.
        prompts: what is asked.
        shape: how requests come.
        seed: of their times and their order.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        prompts: Sequence[Prompt],
        *,
        shape: LoadShape,
        seed: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._endpoint = endpoint
        self._model = model
        self._prompts = prompts
        self._shape = shape
        self._seed = seed
        self._clock = clock
        self._stop = threading.Event()
        self._clients: list[threading.Thread] = []
        self._sender = threading.Thread(target=self._send, name="chaos-load", daemon=True)
        self.requests: list[RequestRecord] = []

    def start(self) -> None:
        """Begin to send."""
        self._sender.start()

    def finish(self) -> list[RequestRecord]:
        """Send nothing more and wait for every answer; a client that gets none gives up."""
        self._stop.set()
        self._sender.join()
        for client in self._clients:
            client.join()
        return self.requests

    def _send(self) -> None:
        rng = random.Random(self._seed)
        due = self._clock()
        while not self._stop.wait(max(due - self._clock(), 0.0)):
            number = rng.randrange(len(self._prompts))
            name = f"chaos-{self._seed:08x}-{len(self.requests)}"
            salt = "shared" if rng.random() < _SHARED_CACHE else name
            record = RequestRecord(name, number, self._clock())
            self.requests.append(record)
            body = asking(self._prompts[number], self._model, salt)
            leave_after = self._spoil(rng, body, record)
            work = (body, record, leave_after)
            client = threading.Thread(target=self._ask, args=work, daemon=True)
            self._clients.append(client)
            client.start()
            # From the time that was drawn, so that one that is late delays no others.
            due += rng.expovariate(self._shape.rate)

    def _spoil(self, rng: random.Random, body: Asking, record: RequestRecord) -> int | None:
        """Make some requests bad ones; returns after how many tokens the client goes away."""
        drawn = rng.random()
        if drawn < self._shape.bad:
            record.bad = True
            body.update(rng.choice(_NONSENSE))
        elif drawn < self._shape.bad + self._shape.leaving:
            return rng.randint(0, self._prompts[record.ask].max_tokens - 1)
        return None

    def _ask(self, body: Asking, record: RequestRecord, leave_after: int | None) -> None:
        ask(
            self._endpoint,
            body,
            record,
            patience_s=self._shape.patience_s,
            clock=self._clock,
            leave_after=leave_after,
        )
