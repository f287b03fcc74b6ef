"""Puts the control of goodput together from what an operator has chosen."""

from pathlib import Path

from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.speculative.goodput.controller import GoodputController
from twinflow.runtime.speculative.goodput.record import GoodputLog


def create_goodput(config: SpeculativeConfig | None) -> GoodputController | None:
    """The control that was asked for; None if proposals are always as long as is allowed.

    Raises:
        ConfigError: choices cannot be written where they should be.
    """
    if config is None or not config.adaptive:
        return None
    decisions = config.adaptive_decisions
    return GoodputController(
        config.level_widths, GoodputLog(Path(decisions)) if decisions else None
    )
