"""What builders of trees ask of a drafter, and the order in which nodes of a proposal are numbered.

A builder decides which nodes a proposal has; the drafter's model says how likely tokens are. A
builder runs no model and verifies nothing: it is a generator that asks for the distributions behind
some paths and is sent them, so that trees of several sequences grow with the same passes.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from twinflow.runtime.speculative.draft import Draft, FloatArray, Siblings

Path = tuple[int, ...]

# A tree in the making: asks for the drafter's distributions behind some paths, from one pass over
# all of them, and is sent these.
Growth = Generator[Sequence[Path], Sequence[FloatArray], Draft]
# The same for several trees, by the number of each.
ExpandAll = Callable[[Mapping[int, Sequence[Path]]], Mapping[int, Sequence[FloatArray]]]


def grow_together(growths: Sequence[Growth], expand: ExpandAll) -> list[Draft]:
    """Grow several trees, with one call of `expand` for each level of the deepest.

    Each says how many levels it was grown by, those that left it no node included.
    """
    grown: dict[int, Draft] = {}
    wanted: dict[int, Sequence[Path]] = {}
    levels = 0

    def advance(number: int, distributions: Sequence[FloatArray] | None) -> None:
        try:
            # A generator begins when it is sent None.
            wanted[number] = growths[number].send(distributions)  # type: ignore[arg-type]
        except StopIteration as end:
            grown[number] = replace(end.value, grown=levels)

    for number in range(len(growths)):
        advance(number, None)
    while wanted:
        asked, wanted = wanted, {}
        levels += 1
        for number, distributions in expand(asked).items():
            advance(number, distributions)
    return [grown[number] for number in range(len(growths))]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that a builder has thought of.

    Attributes:
        path: its tokens, from the one behind the sequence on.
        value: how likely it is that the whole path is accepted; never above that of its parent.
    """

    path: Path
    value: float


def likeliest(distribution: FloatArray, count: int) -> list[int]:
    """Tokens that may come, most likely first; of equals the lower one.

    Args:
        distribution: of the next token; a token of probability 0 is none of them.
        count: most tokens.
    """
    count = min(count, len(distribution))
    least = np.partition(distribution, -count)[-count]
    among = np.flatnonzero((distribution >= least) & (distribution > 0.0))
    order: list[int] = among[np.argsort(-distribution[among], kind="stable")][:count].tolist()
    return order


def tree_of(
    candidates: Sequence[Candidate],
    siblings: Siblings,
    distributions: dict[Path, FloatArray],
) -> Draft:
    """The proposal with these nodes.

    Args:
        candidates: with each its parent; siblings in the order in which they were found.
        siblings: how children were found.
        distributions: what children were drawn from, by path of their parent.
    """
    ordered = sorted(candidates, key=lambda candidate: len(candidate.path))
    numbers: dict[Path, int] = {(): 0}
    for candidate in ordered:
        numbers[candidate.path] = len(numbers)
    parents = tuple(numbers[candidate.path[:-1]] for candidate in ordered)
    tokens = tuple(candidate.path[-1] for candidate in ordered)
    if siblings is Siblings.FIXED:
        return Draft(tokens, parents)
    drawn = {numbers[path]: q for path, q in distributions.items() if path in numbers}
    return Draft(tokens, parents, siblings, drawn)
