"""A target and a drafter over a small vocabulary, and the exact law of random decisions.

A rule's decisions are few and each has few outcomes, so all of them can be gone through: the
distribution of what a sequence gets is computed, not estimated.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from twinflow.runtime.speculative.draft import Draft, FloatArray, Siblings
from twinflow.runtime.speculative.verification.base import Chance, VerificationRule

Tokens = tuple[int, ...]
Outcome = TypeVar("Outcome")
# One in a thousand right rules has a larger score.
CHI_SQUARE_LIMIT = 3.1


class ScriptedChance:
    """Takes the decisions of a script, and behind its end the first possible one.

    Attributes:
        weight: probability of everything decided so far.
        untaken: scripts of the decisions that were possible instead.
    """

    def __init__(self, script: Tokens) -> None:
        self._script = script
        self._taken: Tokens = ()
        self.weight = 1.0
        self.untaken: list[Tokens] = []

    def happens(self, weight: float, of: float) -> bool:
        yes = min(1.0, weight / of) if of > 0.0 else float(weight > 0.0)
        return self._decide([yes, 1.0 - yes]) == 0

    def draw(self, distribution: FloatArray) -> int:
        return self._decide((distribution / distribution.sum()).tolist())

    def _decide(self, odds: Sequence[float]) -> int:
        possible = [index for index, odd in enumerate(odds) if odd > 0.0]
        if len(self._taken) < len(self._script):
            chosen = self._script[len(self._taken)]
        else:
            chosen = possible[0]
            self.untaken.extend((*self._taken, other) for other in possible[1:])
        self._taken += (chosen,)
        self.weight *= odds[chosen]
        return chosen


def exact_law(act: Callable[[Chance], Outcome]) -> dict[Outcome, float]:
    """The probability of everything that `act` may return."""
    law: dict[Outcome, float] = defaultdict(float)
    scripts: list[Tokens] = [()]
    while scripts:
        chance = ScriptedChance(scripts.pop())
        law[act(chance)] += chance.weight
        scripts.extend(chance.untaken)
    return law


@dataclass(frozen=True)
class ToyModels:
    """A target and a drafter whose distributions depend on every token before.

    Attributes:
        vocab_size: tokens.
        seed: of the distributions.
        closeness: how much of the target the drafter knows, up to 1.
        begun: tokens that are there already.
    """

    vocab_size: int
    seed: int
    closeness: float = 0.35
    begun: Tokens = ()
    _known: dict[tuple[str, Tokens], FloatArray] = field(default_factory=dict)

    def target(self, context: Tokens) -> FloatArray:
        """The target's distribution behind some tokens."""
        return self._random("target", context)

    def drafter(self, context: Tokens) -> FloatArray:
        """The drafter's distribution behind some tokens."""
        noise = self._random("drafter", context)
        return self.closeness * self.target(context) + (1.0 - self.closeness) * noise

    def continuations(self, length: int) -> dict[Tokens, float]:
        """The target's distribution of the first tokens."""
        every = itertools.product(range(self.vocab_size), repeat=length)
        return {tokens: self.likelihood((), tokens) for tokens in every}

    def likelihood(self, context: Tokens, tokens: Tokens) -> float:
        """The target's probability of tokens behind a context."""
        value = 1.0
        for index, token in enumerate(tokens):
            value *= float(self.target(context + tokens[:index])[token])
        return value

    def _random(self, who: str, context: Tokens) -> FloatArray:
        key = (who, self.begun + context)
        if key not in self._known:
            rng = np.random.default_rng(random.Random(f"{self.seed} {key}").getrandbits(64))
            self._known[key] = rng.dirichlet(np.full(self.vocab_size, 0.7))
        return self._known[key]


@dataclass(frozen=True)
class ToyTarget:
    """The toy target behind the nodes of a proposal; see `Target`."""

    models: ToyModels
    draft: Draft

    def token(self, node: int) -> int:
        return int(self.probabilities(node).argmax())

    def probabilities(self, node: int) -> FloatArray:
        path = self.draft.path(node)
        return self.models.target(tuple(map(self.draft.token, path)))


def propose(models: ToyModels, siblings: Siblings, parents: Sequence[int], chance: Chance) -> Draft:
    """A tree of a given shape whose tokens the toy drafter has chosen."""
    tokens: list[int] = []
    distributions: dict[int, FloatArray] = {}
    for node, parent in enumerate(parents, start=1):
        so_far = Draft(tuple(tokens), tuple(parents[: node - 1]))
        context = tuple(map(so_far.token, so_far.path(parent)))
        elder = [so_far.token(child) for child in so_far.children(parent)]
        distributions[parent] = models.drafter(context)
        tokens.append(_choose(distributions[parent], elder, siblings, chance))
    drawn = {} if siblings is Siblings.FIXED else distributions
    return Draft(tuple(tokens), tuple(parents), siblings, drawn)


def _choose(
    distribution: FloatArray, elder: Sequence[int], siblings: Siblings, chance: Chance
) -> int:
    left = distribution.copy()
    if siblings is not Siblings.INDEPENDENT:
        left[list(elder)] = 0.0
    return int(left.argmax()) if siblings is Siblings.FIXED else chance.draw(left)


def one_round(
    models: ToyModels, rule: VerificationRule, siblings: Siblings, parents: Sequence[int]
) -> dict[Tokens, float]:
    """The law of what a sequence gets in one round of drafting and verification."""

    def act(chance: Chance) -> Tokens:
        draft = propose(models, siblings, parents, chance)
        return rule.verify(draft, ToyTarget(models, draft), chance).tokens(draft)

    return exact_law(act)


def distance(models: ToyModels, law: dict[Tokens, float]) -> float:
    """How far the first tokens of rounds are from the target's distribution: total variation.

    As many tokens are looked at as a round has at most, so that the one behind an accepted leaf is
    among them; where a round has fewer, the target goes on.
    """
    length = max(map(len, law))
    reached: dict[Tokens, float] = defaultdict(float)
    for tokens, weight in law.items():
        rest = itertools.product(range(models.vocab_size), repeat=length - len(tokens))
        for more in rest:
            reached[tokens + more] += weight * models.likelihood(tokens, more)
    wanted = models.continuations(length)
    return 0.5 * sum(abs(reached[tokens] - wanted[tokens]) for tokens in wanted)


def mean_length(law: dict[Tokens, float]) -> float:
    """Tokens of a round, on average."""
    return sum(weight * len(tokens) for tokens, weight in law.items())


def chi_square(observed: dict[Tokens, int], expected: dict[Tokens, float]) -> float:
    """Normal score of Pearson's statistic (Wilson and Hilferty); rare cells are joined."""
    trials = sum(observed.values())
    common = [key for key, odds in expected.items() if odds * trials >= 8]
    counts = [observed.get(key, 0) for key in common]
    means = [expected[key] * trials for key in common]
    counts.append(trials - sum(counts))
    means.append(trials - sum(means))
    freedom = len(counts) - 1
    statistic = sum((o - e) ** 2 / e for o, e in zip(counts, means, strict=True) if e > 0.0)
    spread = 2.0 / (9.0 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - (1.0 - spread)) / spread**0.5)
