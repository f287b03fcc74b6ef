"""Decode and prefill of all contestants, in turns: which round, which size, then who.

Prompt tokens per second are those of one prompt with one token generated; decode tokens per second
are what further tokens add to that. Rates are per processor second of the contestant's process,
which others who want the cores do not lengthen, and per second of the clock.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.load.spread import Spread, ratios, spread
from benchmarks.peers.child import Answer, PeerError
from benchmarks.peers.limits import Rates

DECODE, PREFILL = "decode", "prefill"
DECODE_PROMPT = 16
_CHECKED_TOKENS = 16
# A text in the vocabulary of SmolLM2 would tie the race to it; these ids mean something in most.
_CHECKED_PROMPT = list(range(300, 332))


class Runner(Protocol):
    """A contestant that answers."""

    @property
    def name(self) -> str:
        """In the table."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], count: int) -> Answer:
        """See `Child.generate`."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        batches: sequences that decode together.
        prompts: tokens of the prompt.
        tokens: further tokens of each sequence.
        rounds: of all contestants; one more warms up.
    """

    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    tokens: int
    rounds: int

    @property
    def sizes(self) -> list[tuple[str, int]]:
        """Phases with their sizes."""
        decodes = [(DECODE, size) for size in self.batches]
        return decodes + [(PREFILL, size) for size in self.prompts]

    @property
    def max_tokens(self) -> int:
        """Of the longest sequence."""
        decoded = DECODE_PROMPT + 1 + self.tokens
        return max(*self.prompts, decoded, len(_CHECKED_PROMPT) + _CHECKED_TOKENS) + 1

    @property
    def total_tokens(self) -> int:
        """Of all sequences that are generated together, at most."""
        most = max(self.batches, default=1)
        return max(self.max_tokens, most * (DECODE_PROMPT + 1 + self.tokens))


@dataclass(frozen=True, slots=True)
class Cell:
    """One contestant at one size.

    Attributes:
        arm: its name.
        phase: decode or prefill.
        size: sequences, or tokens of the prompt.
        per_cpu: tokens per processor second.
        per_wall: tokens per second.
        lead: rate per processor second of the first contestant in the same round, by this one's.
    """

    arm: str
    phase: str
    size: int
    per_cpu: Spread
    per_wall: Spread
    lead: Spread


@dataclass(slots=True)
class Found:
    """What a race has shown so far.

    Attributes:
        samples: (tokens per processor second, tokens per second) of each round, by contestant,
            phase and size.
        limits: of the machine.
        first_tokens: what each contestant makes of one prompt.
        gone: who fell out, and why.
    """

    samples: dict[tuple[str, str, int], list[tuple[float, float]]] = field(default_factory=dict)
    limits: Rates = field(default_factory=lambda: Rates(0.0, 0.0))
    first_tokens: dict[str, list[int]] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """Of everybody who has finished a round of a size, in the order of the race."""
        first = next(iter(self.first_tokens), "")
        cells = []
        for (arm, phase, size), own in self.samples.items():
            theirs = [rate for rate, _ in self.samples[first, phase, size][: len(own)]]
            per_cpu, per_wall = zip(*own, strict=True)
            lead = ratios(theirs, per_cpu)
            cells.append(Cell(arm, phase, size, spread(per_cpu), spread(per_wall), lead))
        return cells

    def same_tokens(self, arm: str) -> int:
        """How many first tokens are those of the first contestant."""
        own, theirs = self.first_tokens[arm], next(iter(self.first_tokens.values()))
        pairs = zip(own, theirs, strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(own), len(theirs)))


def race(
    runners: Sequence[Runner],
    plan: Plan,
    machine: Callable[[], Rates],
    say: Callable[[str], None],
) -> Found:
    """Run all rounds.

    Args:
        runners: the first is the one that the others are compared with.
        plan: what is measured.
        machine: measures the limits once.
        say: is told how far the race is, and who fell out.
    """
    found = Found()
    running = list(runners)
    for runner in runners:
        try:
            tokens = runner.generate([_CHECKED_PROMPT], _CHECKED_TOKENS).tokens
            found.first_tokens[runner.name] = tokens[0]
        except PeerError as error:
            _drop(runner, error, running, found, say)
    for number in range(plan.rounds + 1):
        say(f"round {number} of {plan.rounds}" + ("" if number else ", which warms up"))
        found.limits = found.limits.best(machine())
        for phase, size in plan.sizes:
            for runner in list(running):
                try:
                    rates = _RATES[phase](runner, size, plan.tokens)
                except PeerError as error:
                    _drop(runner, error, running, found, say)
                    continue
                if number:
                    found.samples.setdefault((runner.name, phase, size), []).append(rates)
    return found


def _drop(
    runner: Runner,
    error: PeerError,
    running: list[Runner],
    found: Found,
    say: Callable[[str], None],
) -> None:
    running.remove(runner)
    found.gone[runner.name] = error.message
    say(f"goes on without {runner.name}: {error.message}")


def _decode(runner: Runner, batch: int, tokens: int) -> tuple[float, float]:
    prompts = [
        [300 + sequence + place for place in range(DECODE_PROMPT)] for sequence in range(batch)
    ]
    first, all_of_them = runner.generate(prompts, 1), runner.generate(prompts, 1 + tokens)
    made = batch * tokens
    return (
        made / max(1e-9, all_of_them.cpu_s - first.cpu_s),
        made / max(1e-9, all_of_them.wall_s - first.wall_s),
    )


def _prefill(runner: Runner, length: int, tokens: int) -> tuple[float, float]:
    answer = runner.generate([[300 + place % 1000 for place in range(length)]], 1)
    return length / answer.cpu_s, length / answer.wall_s


_RATES: Mapping[str, Callable[[Runner, int, int], tuple[float, float]]] = {
    DECODE: _decode,
    PREFILL: _prefill,
}
