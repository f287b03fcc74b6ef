"""A whole calibration: what it leaves, and what it refuses before it has computed anything."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from tests.support.calibrations import calibration, quality_report, quality_row
from tests.support.checkpoints import write_checkpoint

from twinflow.parallel.latent.transforms.file import StoredTransform
from twinflow.parallel.latent.transforms.name import TransformName
from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.runtime.calibration.measured import find_measured
from twinflow.runtime.calibration.plot import draw_report
from twinflow.runtime.calibration.report import QualityReport
from twinflow.runtime.calibration.tpla import calibrate_tpla


def never(*_: object) -> None:
    raise AssertionError("something was computed")


@pytest.mark.slow
def test_every_transform_is_measured_and_written(tmp_path: Path) -> None:
    options = calibration(tmp_path, shards=(2, 4))
    phases: list[str] = []

    def progress(phase: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        phases.append(phase)

    report = calibrate_tpla(options, progress)
    names = ["none", "hadamard", "pca", "joint", "joint-exact1", "scores+4", "scores+8"]
    assert [(row.shards, row.transform) for row in report.rows] == [
        (shards, name) for shards in (2, 4) for name in names
    ]
    assert (report.window, report.prompt, report.elements) == (32, 16, 40)
    assert report.scored_tokens == 16 * 6
    assert [report.rows[index].elements for index in (0, 5, 6, 7, 13)] == [24, 26, 28, 16, 22]
    assert list(dict.fromkeys(phases))[:3] == [
        "Loading the model",
        "Collecting latents",
        "Scoring with exact attention",
    ]
    for row in report.rows:
        stored = StoredTransform.read(options.folder / row.file)
        assert (stored.id, stored.card.model) == (row.id, report.model)
        stored.check_shape(options.folder, num_layers=2, kv_rank=32, shards=row.shards)
        assert row.kl_per_token > 0 and 0 < row.agreement <= 1 and row.error_per_byte > 0
        per_token = report.scored_bytes * row.delta_nll_per_byte / report.scored_tokens
        assert row.delta_nll_per_token == pytest.approx(per_token)
    kept = {row.transform: row.kl_per_token for row in report.rows if row.shards == 2}
    assert kept["scores+8"] < kept["scores+4"] < kept["joint"] < kept["none"]
    assert kept["joint-exact1"] < kept["joint"]
    assert [len(row.exact_layers) for row in report.rows[:7]] == [0, 0, 0, 0, 1, 0, 0]
    exact = report.rows[4]
    assert exact.layer_kl[exact.exact_layers[0]] == max(exact.layer_kl) > 0
    assert len({row.id for row in report.rows}) == len(report.rows)
    assert QualityReport.read(options.folder) == report
    assert (options.folder / "report.md").read_text() == report.table()
    left = {path.name for path in options.folder.iterdir()}
    assert left == {"report.json", "report.md", *(row.file for row in report.rows)}


def test_what_was_asked_for_is_measured_where_it_was_asked_to_be(tmp_path: Path) -> None:
    options = calibration(tmp_path, transforms=("pca", "pca"), out=tmp_path / "a" / "b")
    report = calibrate_tpla(options, lambda *_: None)
    assert [row.transform for row in report.rows] == ["pca"]
    assert (tmp_path / "a" / "b" / "pca-2.safetensors").exists()
    assert not (options.model / "tpla").exists()


def test_a_second_calibration_keeps_what_the_first_has_measured(tmp_path: Path) -> None:
    first = calibration(tmp_path, transforms=("none", "pca"))
    before = calibrate_tpla(first, lambda *_: None)
    text = tmp_path / "other.txt"
    text.write_text("another text, about other things; " + first.text.read_text("utf-8"), "utf-8")
    second = replace(first, text=text, transforms=("pca", "joint"), tokens=350)
    after = calibrate_tpla(second, lambda *_: None)
    assert [row.transform for row in after.rows] == ["none", "pca", "joint"]
    assert after.row(TransformName("pca"), 2) != before.row(TransformName("pca"), 2)
    for transform, name in (("none", "text.txt"), ("pca", "other.txt"), ("joint", "other.txt")):
        found = find_measured(first.model, transform, 2)
        assert StoredTransform.read(found.path).id == found.row.id
        assert f" tokens of {name}, contexts of 32)" in found.describe()
    assert after.measurement_of(after.rows[0]) == before.measurement
    assert after.measurement.text_digest == sha256(text.read_bytes()).hexdigest()
    assert QualityReport.read(first.folder) == after
    assert (first.folder / "report.md").read_text() == after.table()


def test_a_damaged_report_is_replaced(tmp_path: Path) -> None:
    options = calibration(tmp_path, transforms=("none",))
    options.folder.mkdir()
    (options.folder / "report.json").write_text("{")
    report = calibrate_tpla(options, lambda *_: None)
    assert QualityReport.read(options.folder) == report


def test_rows_of_the_same_model_are_kept_with_what_they_were_measured_on() -> None:
    first = quality_report(quality_row("joint", 4), quality_row("pca", 2))
    same = quality_report(quality_row("none", 2)).with_earlier(first)
    assert [(row.transform, row.shards) for row in same.rows] == [
        *(("pca", 2), ("none", 2), ("joint", 4))
    ]
    assert same.table().count("Decode steps of `book.txt`") == 1
    anew = quality_row("pca", 2, agreement=0.5)
    last = quality_report(anew, text="other.txt", scored_tokens=700).with_earlier(same)
    assert last.rows == (
        quality_row("none", 2, earlier=first.measurement),
        anew,
        quality_row("joint", 4, earlier=first.measurement),
    )
    theirs, ours = last.table().split("Decode steps of `book.txt` (500 held-out")[::-1]
    assert ours.startswith("Decode steps of `other.txt` (700 held-out")
    assert ("| pca |" in ours, "| pca |" in theirs) == (True, False)
    assert theirs.count("| none |") == theirs.count("| joint |") == 1
    # Measured again on the first text: nothing is special about these rows any longer.
    back = quality_report(quality_row("pca", 2)).with_earlier(last)
    assert [row.earlier for row in back.rows] == [None, None, None]


@pytest.mark.parametrize("changes", [{"model": "xyz"}, {"dtype": "bfloat16"}])
def test_rows_of_another_model_or_dtype_are_not_kept(changes: dict[str, str]) -> None:
    earlier = quality_report(quality_row("joint", 4), **changes)
    report = quality_report(quality_row("pca", 2))
    assert report.with_earlier(earlier) == report


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": (3,)}, "cannot be cut into 3 slices"),
        ({"shards": (16,)}, "8 heads cannot be shared by 16 ranks"),
        ({"shards": ()}, "name at least one number of shards"),
        ({"transforms": ("svd",)}, "'svd': unknown; choose one of none"),
        ({"transforms": ("joint+3",)}, "behind 3 common columns"),
        ({"transforms": ("joint+32",)}, "behind 32 common columns"),
        ({"transforms": ("joint-exact2",)}, "joint-exact2: the model has 2 layers"),
        ({"window": 513}, "--window 513: the model reads at most 512 tokens"),
        ({"tokens": 100}, "--text .* 100 tokens are too few"),
        ({"device": "tpu"}, "device 'tpu': use cpu"),
        ({"dtype": "float8"}, "--dtype float8"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    options = calibration(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        calibrate_tpla(options, never)
    assert not options.folder.exists()


def test_models_without_latent_attention_are_refused(tmp_path: Path) -> None:
    options = calibration(tmp_path)
    llama = write_checkpoint(tmp_path / "llama")
    with pytest.raises(ConfigError, match="LlamaForCausalLM has no latent attention"):
        calibrate_tpla(replace(options, model=llama), never)
    with pytest.raises(CheckpointError, match="no such directory"):
        calibrate_tpla(replace(options, model=tmp_path / "nowhere"), never)


def test_a_folder_that_cannot_be_written_to_is_found_first(tmp_path: Path) -> None:
    options = calibration(tmp_path)
    (options.model / "tpla").write_text("in the way")
    with pytest.raises(ConfigError, match=r"tpla: cannot be written to: .*--out"):
        calibrate_tpla(options, never)


def test_reports_come_back_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    other = quality_report(text="other.txt").measurement
    exact = quality_row("joint-exact2", 2, exact_layers=(0, 5), layer_kl=(0.5, 0.25))
    report = quality_report(exact, quality_row("joint+64", 4, earlier=other))
    report.write(tmp_path)
    assert QualityReport.read(tmp_path) == report
    assert QualityReport.read(tmp_path / "none") is None
    assert "| 4 | joint+64 | - | 24 | 0.600 | +0.0125 | +0.00400 |" in report.table()
    assert "| 2 | joint-exact2 | 0, 5 | 24 |" in report.table()
    assert "`joint-exact2`, g = 2: KL/token if one layer alone is sliced: 0.5" in report.table()
    path = tmp_path / "report.json"
    whole = path.read_text()
    for text, message in (
        (whole[:-30], "cannot be read"),
        (whole.replace('"agreement"', '"agrees"'), "cannot be read"),
        (whole.replace('"version": 1', '"version": 2'), "is of version 2"),
    ):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            QualityReport.read(tmp_path)


@pytest.mark.slow
def test_a_report_is_drawn(tmp_path: Path) -> None:
    other = quality_report(text="other.txt").measurement
    rows = [quality_row(name, n) for n in (2, 4) for name in ("none", "joint")]
    report = quality_report(*rows, quality_row("pca", 4, earlier=other))
    draw_report(report, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="cannot be written"):
        draw_report(report, tmp_path / "nowhere" / "report.png")
