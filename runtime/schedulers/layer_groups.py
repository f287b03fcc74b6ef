"""Into how many groups a wave cuts the layers, and where the groups end."""

from collections.abc import Sequence

from msgspec.structs import replace

from twinflow.runtime.cost.base import StepLoad, StepTimes
from twinflow.runtime.schedulers.search import largest
from twinflow.runtime.step_plan import RowGroup

# Work of one step, in tokens that cross all layers, after which the paper sets its groups.
TOKENS_PER_GROUP = 512


def paper_groups(num_tokens: int, num_layers: int, tokens_per_group: int = TOKENS_PER_GROUP) -> int:
    """Groups such that a step has as much work as one with a chunk of 512 tokens (section 4)."""
    return min(max(1, -(-num_tokens // tokens_per_group)), num_layers)


def fewest_groups(
    wave: Sequence[RowGroup], others: Sequence[RowGroup], times: StepTimes, seconds: float
) -> int:
    """The smallest number of groups with which no step takes too long.

    Fewer groups give the wave an earlier end, more groups give the other rows shorter steps.

    Args:
        wave: its rows, in all layers.
        others: rows of the same step that cross all layers.
        times: predicts how long a step takes.
        seconds: longest wanted step; if every number of groups takes longer, each layer is a group.
    """
    num_layers = wave[0].layer_end

    def in_time(size: int) -> bool:
        """Whether the longest step ends in time: the last group, where the wave samples."""
        last = [replace(group, layer_start=num_layers - size) for group in wave]
        return times.seconds(StepLoad.of((*others, *last))) <= seconds

    return -(-num_layers // largest(1, num_layers, in_time))


def group_end(layer: int, groups: int, num_layers: int) -> int:
    """One behind the last layer of the group that a layer is in.

    Groups differ by at most one layer, and the larger ones come first.
    """
    size, larger = divmod(num_layers, groups)
    boundary = larger * (size + 1)
    if layer < boundary:
        return layer - layer % (size + 1) + size + 1
    return layer - (layer - boundary) % size + size
