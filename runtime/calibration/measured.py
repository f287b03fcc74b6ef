"""What serving wants to know of a calibration: where the transform is, and what it costs.

Reads the report and the head of the transform's file, no matrices; does not load torch.
"""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from twinflow.parallel.latent.transforms.name import SUFFIX, TransformName, file_id
from twinflow.parallel.latent.transforms.plain import PLAIN_KINDS
from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.runtime.calibration.report import FOLDER, REPORT, QualityReport, QualityRow


@dataclass(frozen=True, slots=True)
class MeasuredTransform:
    """A transform that was measured.

    Attributes:
        path: of its file.
        row: what was measured.
        report: of all that was measured.
    """

    path: Path
    row: QualityRow
    report: QualityReport

    def describe(self) -> str:
        """The measured loss in one sentence, for operators."""
        row, measured = self.row, self.report.measurement_of(self.row)
        return (
            f"tpla approximates attention: {row.transform} with {row.shards} shards changes the "
            f"loss of generated tokens by {row.delta_nll_per_token:+.4f} nats per token "
            f"({row.delta_nll_per_byte:+.5f} per byte), {100 * row.agreement:.2f} % of the most "
            f"likely tokens stay the same (measured in {self.report.dtype} on "
            f"{measured.scored_tokens} tokens of {measured.text}, contexts of {measured.window})"
        )


def find_measured(model: Path, transform: str, shards: int) -> MeasuredTransform:
    """The measured transform that an operator means.

    Args:
        model: directory of the model.
        transform: a name such as `joint+64`, looked up beside the model, or the file of a
            transform, with its report beside it.
        shards: ranks that share the columns.

    Raises:
        CheckpointError: the report is damaged.
        ConfigError: it was not measured, or has changed since.
    """
    advice = (
        f"run twinflow calibrate tpla {model} --text FILE --shards {shards}, or serve without "
        f"knowing what it costs with --force, which without a calibration takes "
        f"--tpla-transform {' or '.join(PLAIN_KINDS)}"
    )
    is_file = transform.endswith(SUFFIX)
    folder = Path(transform).parent if is_file else model / FOLDER
    report = QualityReport.read(folder)
    if report is None:
        raise ConfigError(f"{folder / REPORT}: no such report: {advice}")
    row = _row(report, transform, shards, is_file=is_file)
    if row is None:
        measured = ", ".join(f"{row.transform} with {row.shards} shards" for row in report.rows)
        raise ConfigError(
            f"{folder / REPORT}: {transform} was not measured with {shards} shards, only "
            f"{measured}: {advice}"
        )
    path = folder / row.file
    if _id_of(path) != row.id:
        raise ConfigError(f"{path}: is not the transform that was measured: {advice}")
    return MeasuredTransform(path, row, report)


def transform_file(model: Path, transform: str, shards: int) -> Path:
    """Where a transform is or would be, whether it was measured or not.

    Args:
        model: directory of the model.
        transform: a name, or a file.
        shards: ranks that share the columns.
    """
    if transform.endswith(SUFFIX):
        return Path(transform)
    return model / FOLDER / TransformName.parse(transform).file_name(shards)


def _row(report: QualityReport, transform: str, shards: int, *, is_file: bool) -> QualityRow | None:
    if not is_file:
        return report.row(TransformName.parse(transform), shards)
    name = Path(transform).name
    return next((row for row in report.rows if (row.file, row.shards) == (name, shards)), None)


def _id_of(path: Path) -> str:
    """The id that a file claims; what reads its matrices also checks it."""
    try:
        with safe_open(path, framework="numpy") as file:
            return file_id(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is no transform of latents: {error}") from error
