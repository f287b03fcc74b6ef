"""The ways in which decode workers share latents, by name. Does not load torch."""

from typing import Literal

LatentKind = Literal["replicated", "dcp", "tpla"]
