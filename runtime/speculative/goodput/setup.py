"""Puts the control of goodput together from what an operator has chosen."""

from pathlib import Path

from twinflow.runtime.speculative.config import SpeculativeConfig
from twinflow.runtime.speculative.goodput.controller import GoodputController
from twinflow.runtime.speculative.goodput.record import GoodputLog


def create_goodput(
    config: SpeculativeConfig | None, name: str = "engine"
) -> GoodputController | None:
    """The control that was asked for; None if proposals are always as long as is allowed.

    Args:
        config: the choice.
        name: of the engine; decisions are in `goodput-NAME.jsonl` of the directory.

    Raises:
        ConfigError: choices cannot be written where they should be.
    """
    if config is None or not config.adaptive:
        return None
    folder, log = config.adaptive_decisions, None
    if folder is not None:
        log = GoodputLog(Path(folder) / f"goodput-{name}.jsonl")
    return GoodputController(config.level_widths, log)
