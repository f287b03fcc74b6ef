"""What builders of trees ask of a drafter, and the order in which nodes of a proposal are numbered.

A builder decides which nodes a proposal has; the drafter's model says how likely tokens are. A
builder runs no model and verifies nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twinflow.runtime.speculative.draft import Draft, FloatArray, Siblings

Path = tuple[int, ...]

# The drafter's distributions behind some paths of proposed tokens, from one pass over all of them.
Expand = Callable[[Sequence[Path]], Sequence[FloatArray]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that a builder has thought of.

    Attributes:
        path: its tokens, from the one behind the sequence on.
        value: how likely it is that the whole path is accepted; never above that of its parent.
    """

    path: Path
    value: float


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
