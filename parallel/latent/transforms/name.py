"""What operators call a transform: its kind, and what it is combined with.

`joint` is a kind, `joint+64` is that kind with 64 leading columns that all shards hold, and
`joint-exact2` is that kind with two layers in which shards add up their scores. Does not load
torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from twinflow.protos.errors import ConfigError

# Of a transform that is meant by its file.
SUFFIX = ".safetensors"

_NAME = re.compile(r"([a-zA-Z_]\w*)(?:\+([0-9]+))?(?:-exact([0-9]+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class TransformName:
    """A kind, its common columns, and how many layers are exact.

    Attributes:
        kind: as registered.
        common: leading columns that all shards hold.
        exact: layers in which shards add up their scores: those that lose most otherwise.
    """

    kind: str
    common: int = 0
    exact: int = 0

    @classmethod
    def parse(cls, text: str) -> "TransformName":
        """Read `KIND`, `KIND+COLUMNS`, `KIND-exactLAYERS` or `KIND+COLUMNS-exactLAYERS`.

        Whether there is such a kind is the registry's to say.

        Raises:
            ConfigError: it is none of them.
        """
        found = _NAME.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"transform {text!r}: expected a kind such as joint, a kind and a number of common "
                f"columns such as joint+64, or either with a number of exact layers such as "
                f"joint-exact2"
            )
        kind, common, exact = found.groups(default="0")
        return cls(kind, int(common), int(exact))

    def __str__(self) -> str:
        common = f"+{self.common}" if self.common else ""
        exact = f"-exact{self.exact}" if self.exact else ""
        return f"{self.kind}{common}{exact}"

    def file_name(self, shards: int) -> str:
        """The file of this transform for so many shards."""
        return f"{self}-{shards}{SUFFIX}"


def file_id(metadata: Mapping[str, str]) -> str:
    """What the file of a transform claims to be, from its metadata; who reads all of it checks."""
    return f"{metadata.get('kind')}-{metadata.get('digest', '')[:12]}"
