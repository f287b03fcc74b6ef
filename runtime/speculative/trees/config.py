"""What an operator may choose about trees."""

from dataclasses import dataclass

_MOST = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeConfig:
    """The shape of proposals that branch; `num_speculative_tokens` is how many nodes they have.

    Attributes:
        type: name of what builds them: `beam`, `dyspec` or `sequoia`.
        width: most children of a node; of `beam`, also the paths that go on.
        depth: tokens of the longest path.
    """

    type: str = "sequoia"
    width: int = 4
    depth: int = 4

    def __post_init__(self) -> None:
        for name in ("width", "depth"):
            if not 1 <= getattr(self, name) <= _MOST:
                raise ValueError(f"tree.{name} must be in 1..{_MOST}, not {getattr(self, name)}")
