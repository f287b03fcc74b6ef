"""Which layers of a drafter are computed side by side (EasySpec, arXiv 2502.02493, section 3).

    uniform(8, 3)    0 | 1 2 3 | 4 5 6 | 7

A plan is a partition of the layers into runs. It computes nothing and measures nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

# Error of a group by its first layer and the number of its layers.
GroupErrors = Mapping[tuple[int, int], float]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """All layers in groups.

    Attributes:
        groups: runs of consecutive layers, from the first layer to the last.
    """

    groups: tuple[range, ...]

    def __post_init__(self) -> None:
        layers = [layer for group in self.groups for layer in group]
        if layers != list(range(len(layers))) or not all(self.groups):
            raise ValueError(f"{self.groups} are not all layers in order")

    @classmethod
    def of_sizes(cls, sizes: "tuple[int, ...] | list[int]") -> "LayerPlan":
        """Groups of so many layers."""
        groups, start = [], 0
        for size in sizes:
            groups.append(range(start, start + size))
            start += size
        return cls(tuple(groups))

    @classmethod
    def serial(cls, layers: int) -> "LayerPlan":
        """One layer after the other."""
        return cls.of_sizes([1] * layers)

    @classmethod
    def uniform(cls, layers: int, size: int, first: int = 1, last: int = 1) -> "LayerPlan":
        """Groups of one size between layers that stay alone; what is left over is a group too.

        Args:
            layers: of the model.
            size: of a group.
            first: layers at the beginning that stay alone.
            last: likewise at the end.

        Raises:
            ValueError: more layers are to stay alone than there are, or groups are empty.
        """
        between = _between(layers, first, last)
        if size < 1:
            raise ValueError(f"groups have at least one layer, not {size}")
        whole, rest = divmod(between, size)
        middle = [size] * whole + ([rest] if rest else [])
        return cls.of_sizes([1] * first + middle + [1] * last)

    @classmethod
    def measured(
        cls, layers: int, steps: int, errors: GroupErrors, first: int = 0, last: int = 0
    ) -> "LayerPlan":
        """As many groups as asked for, with the least sum of errors: a dynamic programme.

        Errors of groups are taken to add up, which they nearly do.

        Args:
            layers: of the model.
            steps: groups in all.
            errors: of each group that may be chosen; a layer alone has none.
            first: layers at the beginning that stay alone.
            last: likewise at the end.

        Raises:
            ValueError: the groups there are do not make so few, or layers so many.
        """
        between, wanted = _between(layers, first, last), steps - first - last
        if not 0 <= wanted <= between or (wanted == 0) != (between == 0):
            raise ValueError(f"{layers} layers cannot be computed in {steps} steps")
        # best[n]: of the first n layers between, by groups: error, sizes.
        best: list[dict[int, tuple[float, tuple[int, ...]]]] = [{0: (0.0, ())}]
        for end in range(1, between + 1):
            found: dict[int, tuple[float, tuple[int, ...]]] = {}
            for size in range(1, end + 1):
                start = first + end - size
                error = 0.0 if size == 1 else errors.get((start, size))
                if error is None:
                    continue
                for count, (total, sizes) in best[end - size].items():
                    candidate = (total + error, (*sizes, size))
                    if count < wanted:
                        found[count + 1] = min(found.get(count + 1, candidate), candidate)
            best.append(found)
        if wanted not in best[between]:
            raise ValueError(f"the groups that were measured do not make {steps} steps")
        middle = best[between][wanted][1]
        return cls.of_sizes((*(1,) * first, *middle, *(1,) * last))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Layers of each group."""
        return tuple(map(len, self.groups))

    @property
    def steps(self) -> int:
        """Attention sub-layers that are waited for, one after the other."""
        return len(self.groups)

    @property
    def is_serial(self) -> bool:
        """Whether no two layers are computed side by side: the plan is exact."""
        return all(len(group) == 1 for group in self.groups)


def _between(layers: int, first: int, last: int) -> int:
    if first < 0 or last < 0 or first + last > layers:
        raise ValueError(
            f"of {layers} layers, the first {first} and the last {last} cannot stay alone"
        )
    return layers - first - last
