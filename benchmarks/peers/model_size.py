"""How many weights a model multiplies with, from the headers of its files."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import safe_open


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Elements of the matrices that a token goes through.

    Attributes:
        layers: of all layers.
        head: of the output head, which a prompt needs for its last token only.
    """

    layers: int
    head: int

    @classmethod
    def of(cls, model: Path) -> "ModelSize":
        """From a directory with safetensors; without a head of its own the embedding is one."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(model.glob("*.safetensors")):
            with safe_open(path, framework="numpy") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dictionary
        matrices = {name: prod(shape) for name, shape in shapes.items() if len(shape) == 2}
        layers = sum(size for name, size in matrices.items() if ".layers." in name)
        embedding = next((s for n, s in matrices.items() if "embed_tokens" in n), 0)
        return cls(layers, matrices.get("lm_head.weight", embedding))
