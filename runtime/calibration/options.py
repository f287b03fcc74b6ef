"""What an operator may choose about a calibration. Does not load torch."""

from dataclasses import dataclass
from pathlib import Path

from twinflow.runtime.calibration.report import FOLDER


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """One run of `twinflow calibrate tpla`.

    Attributes:
        model: directory of the checkpoint.
        text: file to calibrate with and to measure on.
        out: where transforms and report go; None for a folder in the model's directory.
        shards: numbers of shards to measure.
        transforms: which, as operators write them; empty for all kinds and two with common
            columns.
        tokens: of the text, at most.
        window: tokens of context and scored tokens together.
        dtype: `auto` or a torch dtype name.
        device: `cpu` or `cuda`.
    """

    model: Path
    text: Path
    out: Path | None = None
    shards: tuple[int, ...] = (2, 4)
    transforms: tuple[str, ...] = ()
    tokens: int = 32768
    window: int = 512
    dtype: str = "auto"
    device: str = "cpu"

    @property
    def folder(self) -> Path:
        """Where transforms and report go."""
        return self.out or self.model / FOLDER
