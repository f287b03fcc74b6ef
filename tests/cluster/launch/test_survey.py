"""Nodes that would serve something else get no workers."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.checkpoints import edit_json, write_checkpoint

from twinflow.cluster.launch.survey import Survey, marks_of
from twinflow.protos.errors import CheckpointError, SetupError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """What another node has at the same path."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


def check(model: Path, copy: Path) -> None:
    survey = Survey(model, with_gpus=False)
    survey.check("10.0.0.2", replace(survey.report(), model=marks_of(copy)))


def test_the_same_model(model: Path, copy: Path) -> None:
    (copy / "README.md").write_text("not a part of it")
    check(model, copy)


def test_no_model(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^node 10\.0\.0\.2: .*: no such directory; "):
        check(model, tmp_path / "nowhere")


def test_another_configuration(model: Path, copy: Path) -> None:
    edit_json(copy / "config.json", rope_theta=2.0)
    with pytest.raises(CheckpointError, match=r"config\.json is not the same there"):
        check(model, copy)


def test_weights_that_are_cut_short_or_missing(model: Path, copy: Path) -> None:
    (weights,) = copy.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="safetensors is not the same there"):
        check(model, copy)
    weights.unlink()
    with pytest.raises(CheckpointError, match="safetensors is not the same there"):
        check(model, copy)


def test_another_version(model: Path) -> None:
    survey = Survey(model, with_gpus=False)
    with pytest.raises(SetupError, match=r"^node 10\.0\.0\.2 has twinflow 0\.0\.1, this machine"):
        survey.check("10.0.0.2", replace(survey.report(), version="0.0.1"))
