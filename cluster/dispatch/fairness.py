"""Whose turn it is: the virtual token counter, fair to keys in tokens. Pure; no clock, no tasks.

Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, arXiv 2401.00588,
algorithm 2. Every key has a counter of the service it got: its prompts' tokens when they are let
through, and its generated tokens, which cost more, as they come. The key with the lowest counter
is next. A key that comes back after a pause is lifted to the lowest counter of those that wait, so
that nobody saves turns up.

While two keys both have something waiting, what they were served differs by at most
2 max(p L, q M): p and q are the prices below, L is the longest prompt, and M the most tokens that
sequences of one key that were let through may still generate.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from heapq import heappop, heappush

# Prices of a token, as in the paper.
PROMPT_PRICE = 1.0
OUTPUT_PRICE = 2.0


@dataclass(frozen=True, slots=True, order=True)
class Turn:
    """A sequence that waits; those of a key go by priority, then by when they came.

    Attributes:
        priority: lower goes first, among those of its key.
        number: of its arrival.
        name: of the sequence.
        key: whose it is.
        prompt_tokens: of its prompt.
    """

    priority: int
    number: int
    name: str = field(compare=False)
    key: str = field(compare=False)
    prompt_tokens: int = field(compare=False)


class FairQueue:
    """Sequences that wait, and what their keys were served.

    Attributes:
        counters: of every key that waits or has waited, in prices.
    """

    def __init__(self) -> None:
        self.counters: dict[str, float] = {}
        self._waiting: dict[str, list[Turn]] = {}
        self._withdrawn: set[str] = set()
        self._turns: dict[str, Turn] = {}
        self._latest = ""
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def waiting(self) -> Collection[Turn]:
        """What waits, in order of arrival."""
        return self._turns.values()

    def add(self, name: str, key: str, prompt_tokens: int, priority: int = 0) -> None:
        """A sequence has come.

        Raises:
            ValueError: it waits already.
        """
        if name in self._turns:
            raise ValueError(f"sequence {name} waits already")
        if key not in self._waiting:
            self._lift(key)
        self._arrivals += 1
        turn = Turn(priority, self._arrivals, name, key, prompt_tokens)
        self._turns[name] = turn
        heappush(self._waiting.setdefault(key, []), turn)

    def next(self) -> Turn | None:
        """Whose turn it is; it still waits."""
        if not self._waiting:
            return None
        key = min(self._waiting, key=lambda one: (self.counters[one], self._waiting[one][0].number))
        return self._waiting[key][0]

    def take(self, turn: Turn) -> None:
        """The next one is let through, and its key pays for its prompt."""
        self._latest = turn.key
        self._remove(turn)
        self.counters[turn.key] += PROMPT_PRICE * turn.prompt_tokens

    def withdraw(self, name: str) -> None:
        """A sequence waits no more, unserved; one that does not wait is no error."""
        turn = self._turns.get(name)
        if turn is not None:
            self._remove(turn)

    def generated(self, key: str, tokens: int) -> None:
        """A key's sequences have got tokens."""
        if key in self.counters:
            self.counters[key] += OUTPUT_PRICE * tokens

    def _lift(self, key: str) -> None:
        """Nobody comes back with less than the least that those who wait were served."""
        least = 0.0
        if self._waiting:
            least = min(self.counters[one] for one in self._waiting)
        elif self._latest:
            least = self.counters[self._latest]
        self.counters[key] = max(self.counters.get(key, 0.0), least)

    def _remove(self, turn: Turn) -> None:
        del self._turns[turn.name]
        queue = self._waiting[turn.key]
        if queue[0] is turn:
            heappop(queue)
        else:
            self._withdrawn.add(turn.name)
        while queue and queue[0].name in self._withdrawn:
            self._withdrawn.discard(heappop(queue).name)
        if not queue:
            del self._waiting[turn.key]

    def check_integrity(self) -> None:
        """Raise AssertionError if what waits is counted in two ways."""
        queued = {turn.name for queue in self._waiting.values() for turn in queue}
        if queued - self._withdrawn != self._turns.keys() or self._withdrawn - queued:
            raise AssertionError("sequences that wait and their queues differ")
        if not all(self._waiting.values()) or self._waiting.keys() - self.counters.keys():
            raise AssertionError("keys that wait have nothing, or no counter")
