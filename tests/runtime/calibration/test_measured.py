"""What serving is told of a calibration, and when it is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.calibrations import measured_model, quality_report, quality_row

from twinflow.parallel.latent.transforms.file import StoredTransform
from twinflow.protos.errors import CheckpointError, ConfigError
from twinflow.runtime.calibration.measured import find_measured


def test_a_transform_is_found_by_name_and_by_file(tmp_path: Path) -> None:
    model = measured_model(tmp_path)
    path = tmp_path / "tpla" / "joint+4-2.safetensors"
    for transform in ("joint+4", str(path)):
        found = find_measured(model, transform, 2)
        assert (found.path, found.row.transform) == (path, "joint+4")
    assert found.describe() == (
        "tpla approximates attention: joint+4 with 2 shards changes the loss of generated tokens "
        "by +0.0125 nats per token (+0.00400 per byte), 97.00 % of the most likely tokens stay the "
        "same (measured in float32 on 500 tokens of book.txt, contexts of 512)"
    )


@pytest.mark.parametrize(
    ("transform", "shards", "message"),
    [
        ("joint", 2, "joint was not measured with 2 shards, only joint\\+4 with 2 shards"),
        ("joint+4", 4, "was not measured with 4 shards"),
        ("a b", 2, "expected a kind such as joint"),
        ("elsewhere/t.safetensors", 2, "elsewhere/report.json: no such report"),
    ],
)
def test_what_was_not_measured_is_refused(
    tmp_path: Path, transform: str, shards: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        find_measured(measured_model(tmp_path), transform, shards)


def test_a_model_that_was_not_calibrated_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run twinflow calibrate tpla .* --shards 2.*--force"):
        find_measured(tmp_path, "joint", 2)


def test_the_same_bases_under_another_name_are_refused(tmp_path: Path) -> None:
    """How many columns are common and which layers are exact is measured, too."""
    model = measured_model(tmp_path)
    path = model / "tpla" / "joint+4-2.safetensors"
    stored = StoredTransform.read(path)
    for changes in list[dict[str, Any]]([{"common": 2}, {"exact_layers": (0,)}]):
        card = replace(stored.card, **changes)
        StoredTransform(card, stored.transform).write(path)
        with pytest.raises(ConfigError, match="is not the transform that was measured"):
            find_measured(model, "joint+4", 2)


def test_files_that_changed_since_are_refused(tmp_path: Path) -> None:
    model = measured_model(tmp_path / "a")
    path = model / "tpla" / "joint+4-2.safetensors"
    report = quality_report(quality_row("joint+4", 2, id="joint-000000000000"))
    report.write(model / "tpla")
    with pytest.raises(ConfigError, match="is not the transform that was measured"):
        find_measured(model, "joint+4", 2)
    path.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="is no transform of latents"):
        find_measured(model, "joint+4", 2)
    path.unlink()
    with pytest.raises(CheckpointError, match="is no transform of latents"):
        find_measured(model, "joint+4", 2)
