"""What `twinflow calibrate tpla` has measured: a file that serving reads, and a table for people.

Losses are differences to the same model with exact attention, on the same tokens. Does not load
torch.
"""

from pathlib import Path

import msgspec

from twinflow.parallel.latent.transforms.name import TransformName
from twinflow.parallel.whole_file import write_whole
from twinflow.protos.errors import CheckpointError

FOLDER = "tpla"
REPORT = "report.json"
_VERSION = 1


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What a run has measured on, and what the exact model makes of it.

    Attributes:
        text: name of the file.
        text_digest: sha256 of it.
        calibration_tokens: that the transforms were fitted to.
        scored_tokens: held-out tokens, each of them computed as a decode step.
        scored_bytes: of those.
        window: tokens of context and scored tokens together.
        prompt: how many of these were an exactly computed prompt.
        nll_per_token: of the exact model, on the scored tokens.
        nll_per_byte: likewise.
    """

    text: str
    text_digest: str
    calibration_tokens: int
    scored_tokens: int
    scored_bytes: int
    window: int
    prompt: int
    nll_per_token: float
    nll_per_byte: float


class QualityRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One transform at one number of shards.

    Attributes:
        transform: as operators write it, such as `joint+64` or `joint-exact2`.
        shards: ranks that share the columns.
        file: of the transform, beside the report.
        id: of the file: its bases and all that its card says.
        elements: of a token and layer that a rank caches.
        exact_layers: in which shards add up their scores.
        layer_kl: nats per token that each layer costs if it alone is sliced, on text that
            calibrated; empty unless layers are exact.
        delta_nll_per_token: nats by which the held-out text is less likely.
        delta_nll_per_byte: likewise, per byte of text.
        error_per_byte: standard error of the latter, over windows.
        agreement: share of tokens whose most likely token is the exact model's.
        kl_per_token: nats from the exact distribution to this one.
        earlier: what it was measured on, if that was not what the rest of the report says.
    """

    transform: str
    shards: int
    file: str
    id: str
    elements: int
    delta_nll_per_token: float
    delta_nll_per_byte: float
    error_per_byte: float
    agreement: float
    kl_per_token: float
    exact_layers: tuple[int, ...] = ()
    layer_kl: tuple[float, ...] = ()
    earlier: Measurement | None = None


class QualityReport(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured: in the last run, and of other transforms in those before it.

    Attributes:
        version: of this format.
        model: fingerprint of the checkpoint.
        dtype: of weights, hidden states and latents.
        elements: of a token and layer that a rank caches if nothing is shared.
        rows: what was measured, by the number of shards.

    The other attributes are the last run's `Measurement`.
    """

    version: int = _VERSION
    model: str
    dtype: str
    text: str
    text_digest: str
    calibration_tokens: int
    scored_tokens: int
    scored_bytes: int
    window: int
    prompt: int
    elements: int
    nll_per_token: float
    nll_per_byte: float
    rows: tuple[QualityRow, ...]

    @property
    def measurement(self) -> Measurement:
        """What the last run has measured on."""
        return msgspec.convert(self, Measurement, from_attributes=True)

    def measurement_of(self, row: QualityRow) -> Measurement:
        """What a row of this report was measured on."""
        return row.earlier or self.measurement

    def with_earlier(self, report: "QualityReport") -> "QualityReport":
        """This report, and those rows of an earlier one that were not measured anew.

        Of a report of another model or dtype nothing is kept: it says nothing about this one.
        """
        if (report.model, report.dtype) != (self.model, self.dtype):
            return self
        anew = {(row.transform, row.shards) for row in self.rows}
        kept = []
        for row in report.rows:
            if (row.transform, row.shards) not in anew:
                measured = report.measurement_of(row)
                earlier = None if measured == self.measurement else measured
                kept.append(msgspec.structs.replace(row, earlier=earlier))
        rows = sorted((*kept, *self.rows), key=lambda row: row.shards)
        return msgspec.structs.replace(self, rows=tuple(rows))

    def table(self) -> str:
        """In Markdown: a table for each text that was measured on, that of the last run first."""
        measured = dict.fromkeys((self.measurement, *map(self.measurement_of, self.rows)))
        return "\n".join(map(self._section, measured))

    def _section(self, measured: Measurement) -> str:
        lines = [
            f"Decode steps of `{measured.text}` ({measured.scored_tokens} held-out tokens, "
            f"{measured.scored_bytes} bytes, after prompts of {measured.prompt}; calibrated on "
            f"{measured.calibration_tokens} other tokens; {self.dtype}).",
            f"Exact attention: {measured.nll_per_token:.4f} nats per token, "
            f"{measured.nll_per_byte:.4f} per byte, {self.elements} elements cached per token, "
            f"layer and rank.",
            "",
            "| g | transform | exact layers | elements | share | ΔNLL/token | ΔNLL/byte | ± "
            "| top-1 agreement | KL/token |",
            "|--:|---|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        rows = [row for row in self.rows if self.measurement_of(row) == measured]
        lines += [self._line(row) for row in rows]
        lines += [line for row in rows if row.layer_kl for line in ("", _layers(row))]
        return "\n".join(lines) + "\n"

    def _line(self, row: QualityRow) -> str:
        cells = (
            str(row.shards),
            row.transform,
            ", ".join(map(str, row.exact_layers)) or "-",
            str(row.elements),
            f"{row.elements / self.elements:.3f}",
            f"{row.delta_nll_per_token:+.4f}",
            f"{row.delta_nll_per_byte:+.5f}",
            f"{row.error_per_byte:.5f}",
            f"{row.agreement:.4f}",
            f"{row.kl_per_token:.5f}",
        )
        return f"| {' | '.join(cells)} |"

    def row(self, name: TransformName, shards: int) -> QualityRow | None:
        """What was measured of a transform; None if nothing was."""
        found = (row for row in self.rows if (row.transform, row.shards) == (str(name), shards))
        return next(found, None)

    def write(self, folder: Path) -> None:
        """Write `report.json` and `report.md`, each at once or not at all.

        Raises:
            ConfigError: they cannot be written.
        """
        data = msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"
        write_whole(folder / REPORT, data)
        write_whole(folder / "report.md", self.table().encode())

    @classmethod
    def read(cls, folder: Path) -> "QualityReport | None":
        """Read `report.json`; None if there is none.

        Raises:
            CheckpointError: it is damaged, or of another version.
        """
        path = folder / REPORT
        try:
            report = msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        if report.version != _VERSION:
            raise CheckpointError(
                f"{path}: is of version {report.version}, expected {_VERSION}; run twinflow "
                f"calibrate tpla again"
            )
        return report


def _layers(row: QualityRow) -> str:
    costs = ", ".join(f"{max(cost, 0.0):.5f}" for cost in row.layer_kl)
    return f"`{row.transform}`, g = {row.shards}: KL/token if one layer alone is sliced: {costs}."
