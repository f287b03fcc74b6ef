"""What operators call a transform: its kind, and how many leading columns all shards hold.

`joint` is a kind, `joint+64` is that kind with 64 common columns. Does not load torch.
"""

from dataclasses import dataclass

from twinflow.protos.errors import ConfigError

# Of a transform that is meant by its file.
SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class TransformName:
    """A kind and its common columns.

    Attributes:
        kind: as registered.
        common: leading columns that all shards hold.
    """

    kind: str
    common: int = 0

    @classmethod
    def parse(cls, text: str) -> "TransformName":
        """Read `KIND` or `KIND+COLUMNS`; whether there is such a kind is the registry's to say.

        Raises:
            ConfigError: it is neither.
        """
        kind, plus, columns = text.partition("+")
        if not kind.isidentifier() or (plus and not (columns.isascii() and columns.isdecimal())):
            raise ConfigError(
                f"transform {text!r}: expected a kind such as joint, or a kind and a number of "
                f"common columns such as joint+64"
            )
        return cls(kind, int(columns or 0))

    def __str__(self) -> str:
        return f"{self.kind}+{self.common}" if self.common else self.kind

    def file_name(self, shards: int) -> str:
        """The file of this transform for so many shards."""
        return f"{self}-{shards}{SUFFIX}"
