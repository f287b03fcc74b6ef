"""Tree builders by name, for drafters whose model gives probabilities.

Under the rule `coupled` the target chooses by argmax of scores with noise, and the drafter's
probabilities are those of its own scores with the same noise. So "likeliest" is what the target
most likely chooses, and DySpec's draws are taken in that order: by the Gumbel-max trick they are
draws without replacement from what the drafter says (Kool et al., arXiv 1903.06059).
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from twinflow.runtime.nearest import did_you_mean
from twinflow.runtime.speculative.draft import Draft, FloatArray
from twinflow.runtime.speculative.trees.base import Growth, Path
from twinflow.runtime.speculative.trees.beam import beam_tree
from twinflow.runtime.speculative.trees.config import TreeConfig
from twinflow.runtime.speculative.trees.dyspec import dyspec_tree
from twinflow.runtime.speculative.trees.measured import assumed_rates, best_template
from twinflow.runtime.speculative.trees.template import TreeTemplate

SEQUOIA = "sequoia"
# A node of DySpec that is worth less than this part of an average one is left out.
_LEAST_SHARE = 0.25

# From a configuration and a number of nodes to a tree in the making.
TreeBuilder = Callable[[TreeConfig, int], Growth]

_BUILDERS: dict[str, TreeBuilder] = {}


def register_tree(name: str, build: TreeBuilder) -> None:
    """Make a builder available under a name; a name can be taken only once."""
    if name in _BUILDERS:
        raise ValueError(f"a tree named {name!r} is already registered")
    _BUILDERS[name] = build


def tree_builder(name: str) -> TreeBuilder:
    """The builder with this name.

    Raises:
        ValueError: there is none.
    """
    build = _BUILDERS.get(name)
    if build is None:
        hint = did_you_mean(name, _BUILDERS, otherwise=f"; choose one of {sorted(_BUILDERS)}")
        raise ValueError(f"tree.type {name!r} is unknown{hint}")
    return build


def static_tree(config: TreeConfig, nodes: int) -> TreeTemplate:
    """Sequoia's tree of so many nodes, for rates that are assumed; see `MeasuredTree`."""
    return best_template(assumed_rates(config.width), config.depth, nodes)


@dataclass(frozen=True, slots=True)
class _Likeliest:
    """Draws the token of the largest probability; a `Chance`."""

    def happens(self, weight: float, of: float) -> bool:
        """See `Chance.happens`."""
        return weight >= of > 0.0

    def draw(self, distribution: FloatArray) -> int:
        """See `Chance.draw`."""
        return int(distribution.argmax())


def _dyspec(config: TreeConfig, nodes: int) -> Growth:
    threshold = _LEAST_SHARE / nodes
    tree = dyspec_tree(_Likeliest(), depth=config.depth, budget=nodes, threshold=threshold)
    return _fixed(tree)


def _fixed(tree: Growth) -> Generator[Sequence[Path], Sequence[FloatArray], Draft]:
    """A tree whose tokens count as chosen without chance."""
    drawn = yield from tree
    return Draft(drawn.tokens, drawn.parents)


register_tree(
    "beam", lambda config, nodes: beam_tree(depth=config.depth, width=config.width, budget=nodes)
)
register_tree("dyspec", _dyspec)
register_tree(SEQUOIA, lambda config, nodes: static_tree(config, nodes).grow(nodes))
