"""Names of backends that others speak of; without loading any of them."""

from typing import Final

AUTO: Final = "auto"
NONE: Final = "none"
CORES: Final = "cores"
GREENCTX: Final = "greenctx"
