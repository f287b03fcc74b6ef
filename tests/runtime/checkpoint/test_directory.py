"""Which directories are opened, and which files in them (rows C7, C13)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.checkpoints import assert_one_line, write_checkpoint, write_json

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.config import load_model_config
from twinflow.runtime.checkpoint.directory import ModelDirectory
from twinflow.runtime.checkpoint.weights import Checkpoint

_NOBODY = 65534


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may read everything; be somebody else for a moment."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(user)


def test_what_is_not_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as missing:
        ModelDirectory.open(tmp_path / "absent")
    assert_one_line(missing.value, tmp_path / "absent", "no such directory")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(CheckpointError) as not_directory:
        ModelDirectory.open(file)
    assert_one_line(not_directory.value, file, "is a file")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(CheckpointError):
        ModelDirectory.open(loop)


def test_a_file_instead_of_a_directory_gets_its_advice(tmp_path: Path) -> None:
    for name, advice in (("m.gguf", "twinflow models import"), ("m.pt", "never opened")):
        (tmp_path / name).touch()
        with pytest.raises(CheckpointError) as caught:
            ModelDirectory.open(tmp_path / name)
        assert_one_line(caught.value, tmp_path / name, advice)


def test_an_unreadable_directory_is_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model")
    directory.chmod(0)
    with without_privileges(), pytest.raises(CheckpointError) as caught:
        load_model_config(directory)
    assert_one_line(caught.value, directory, "Permission denied")


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "model")
    for path in (*tmp_path.parents, tmp_path, directory):
        if path.stat().st_uid == os.geteuid() and path.is_relative_to("/tmp/"):
            path.chmod(0o755)
    (directory / "model.safetensors").chmod(0)
    with without_privileges(), pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    assert_one_line(caught.value, directory, "Permission denied")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".", "..", "a\0b"])
def test_paths_are_not_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        ModelDirectory.open(tmp_path).find(name)
    assert_one_line(caught.value, "expected a plain name")


def test_links_stay_inside(tmp_path: Path) -> None:
    model, outside = tmp_path / "model", tmp_path / "outside.json"
    model.mkdir()
    write_json(outside, {})
    (model / "real.json").touch()
    (model / "inside.json").symlink_to("real.json")
    (model / "config.json").symlink_to(outside)
    (model / "dangling.json").symlink_to("nothing")
    folder = ModelDirectory.open(model)
    assert folder.find("inside.json") == (model / "real.json").resolve()
    with pytest.raises(CheckpointError) as leaves:
        folder.find("config.json")
    assert_one_line(leaves.value, model / "config.json", "outside of")
    with pytest.raises(CheckpointError) as dangling:
        folder.find("dangling.json")
    assert_one_line(dangling.value, "does not exist")


def test_special_files_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError) as caught:
        load_model_config(tmp_path)
    assert_one_line(caught.value, "is not a regular file")


def test_the_hub_cache_is_read_through_its_links(tmp_path: Path) -> None:
    files = write_checkpoint(tmp_path / "files")
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in files.iterdir():
        path.rename(repository / "blobs" / f"digest-of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/digest-of-{path.name}")
    assert load_model_config(snapshot).vocab_size == 300
    checkpoint = Checkpoint.open(snapshot)
    assert dict(checkpoint.tensors()).keys() == checkpoint.shapes.keys()
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError) as caught:
        load_model_config(snapshot)
    assert_one_line(caught.value, "outside of", repository)


def test_a_directory_may_be_a_link_itself(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "real")
    (tmp_path / "current").symlink_to("real")
    assert load_model_config(tmp_path / "current").vocab_size == 300
