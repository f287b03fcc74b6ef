"""Turns are fair to keys in tokens, within the bound of the virtual token counter's paper."""

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinflow.cluster.dispatch.fairness import OUTPUT_PRICE, PROMPT_PRICE, FairQueue

KEYS = ("a", "b", "c")


def test_the_key_that_was_served_least_is_next() -> None:
    queue = FairQueue()
    for number in range(3):
        queue.add(f"a{number}", "a", 100)
    queue.add("b0", "b", 10)
    served = []
    while (turn := queue.next()) is not None:
        queue.take(turn)
        served.append(turn.name)
        queue.check_integrity()
    assert served == ["a0", "b0", "a1", "a2"]


def test_generated_tokens_count_as_well() -> None:
    queue = FairQueue()
    for key in ("a", "b"):
        for number in range(2):
            queue.add(f"{key}{number}", key, 10)
    first = queue.next()
    assert first is not None and first.name == "a0"
    queue.take(first)
    queue.generated("a", 100)
    order = []
    while (turn := queue.next()) is not None:
        queue.take(turn)
        order.append(turn.name)
    assert order == ["b0", "b1", "a1"]


def test_a_pause_saves_no_turns_up() -> None:
    queue = FairQueue()
    for number in range(50):
        queue.add(f"a{number}", "a", 100)
    for _ in range(40):
        turn = queue.next()
        assert turn is not None
        queue.take(turn)
    for number in range(10):
        queue.add(f"b{number}", "b", 100)
    order = []
    for _ in range(10):
        turn = queue.next()
        assert turn is not None
        queue.take(turn)
        order.append(turn.key)
    assert order.count("b") == 5


def test_priority_orders_a_key_s_own_sequences_only() -> None:
    queue = FairQueue()
    queue.add("a0", "a", 10, priority=5)
    queue.add("a1", "a", 10, priority=-5)
    queue.add("b0", "b", 10)
    order = []
    while (turn := queue.next()) is not None:
        queue.take(turn)
        order.append(turn.name)
    assert order == ["b0", "a1", "a0"] or order == ["a1", "b0", "a0"]


def test_who_waits_no_more_is_passed_over() -> None:
    queue = FairQueue()
    for number in range(4):
        queue.add(f"a{number}", "a", 10)
    with pytest.raises(ValueError, match="a0 waits already"):
        queue.add("a0", "a", 10)
    for name in ("a2", "a0", "a0", "nobody"):
        queue.withdraw(name)
        queue.check_integrity()
    order = []
    while (turn := queue.next()) is not None:
        queue.take(turn)
        order.append(turn.name)
    assert order == ["a1", "a3"]
    assert len(queue) == 0


@dataclass
class Server:
    """Generates tokens of what was let through; keys never run out of sequences that wait."""

    random: Random
    prompts: dict[str, int]
    queue: FairQueue = field(default_factory=FairQueue)
    running: list[list[object]] = field(default_factory=list)
    served: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KEYS, 0.0))
    most_owed: int = 0
    names: int = 0

    def come(self) -> None:
        """Every key has something that waits at every moment, also while one is taken."""
        for key in KEYS:
            while sum(turn.key == key for turn in self.queue.waiting) < 2:
                self.names += 1
                self.queue.add(f"{key}{self.names}", key, self.prompts[key])

    def step(self, places: int, outputs: int) -> None:
        self.come()
        while len(self.running) < places and (turn := self.queue.next()) is not None:
            self.queue.take(turn)
            self.come()
            self.served[turn.key] += PROMPT_PRICE * turn.prompt_tokens
            self.running.append([turn.key, self.random.randint(1, outputs)])
        for key in KEYS:
            owed = sum(int(str(one[1])) for one in self.running if one[0] == key)
            self.most_owed = max(self.most_owed, owed)
        for one in self.running:
            key = str(one[0])
            one[1] = int(str(one[1])) - 1
            self.queue.generated(key, 1)
            self.served[key] += OUTPUT_PRICE
        self.running = [one for one in self.running if int(str(one[1])) > 0]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    prompts=st.lists(st.integers(1, 400), min_size=3, max_size=3),
    places=st.integers(1, 12),
    outputs=st.integers(1, 60),
)
def test_what_keys_that_wait_are_served_differs_by_a_bound(
    seed: int, prompts: list[int], places: int, outputs: int
) -> None:
    server = Server(Random(seed), dict(zip(KEYS, prompts, strict=True)))
    for _ in range(200):
        server.step(places, outputs)
        server.queue.check_integrity()
    bound = 2 * max(PROMPT_PRICE * max(prompts), OUTPUT_PRICE * server.most_owed)
    assert max(server.served.values()) - min(server.served.values()) <= bound
