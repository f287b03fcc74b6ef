"""What an installation of twinflow offers: public names, metadata, and the files of a wheel."""

import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import twinflow

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("cluster", "workers", "runtime", "parallel", "protos")


@pytest.mark.parametrize("name", twinflow.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(twinflow, name) is not None


def test_public_means_listed() -> None:
    assert dir(twinflow) == sorted(twinflow.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Llm'"):
        _ = twinflow.Llm


def test_the_installed_version_is_the_sources() -> None:
    assert metadata.version("twinflow") == twinflow.__version__


def test_no_requirement_can_bring_another_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    assert required["torch"] == SpecifierSet(">=2.11,<2.16")
    assert not [name for name in required if name.startswith(("nvidia", "triton", "cuda"))]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def files_of_the_checkout() -> set[str]:
    """What a wheel must hold of the five folders, by its name there."""
    listed = subprocess.run(
        ["git", "ls-files", *FOLDERS], cwd=ROOT, check=True, capture_output=True, text=True
    )
    kinds = (".py", ".pyi", ".proto")
    return {f"twinflow/{name}" for name in listed.stdout.split() if name.endswith(kinds)}


@pytest.mark.slow
def test_the_wheel_holds_all_folders_and_only_twinflow(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert files_of_the_checkout() <= names
    assert {"twinflow/__main__.py", "twinflow/py.typed"} <= names
    assert {name.partition("/")[0] for name in names} == {
        "twinflow",
        f"twinflow-{twinflow.__version__}.dist-info",
    }
    assert not any(name.endswith(".binpb") for name in names)


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    (wheel,) = built.glob("*.whl")
    # Not tarfile: the first releases of Python 3.11 do not know its filters, the latest warn.
    subprocess.run(["tar", "-xf", str(sdist), "-C", str(tmp_path)], check=True)
    (unpacked,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=unpacked, check=True, capture_output=True)
    (rebuilt,) = tmp_path.glob("*.whl")
    assert zipfile.ZipFile(rebuilt).namelist() == zipfile.ZipFile(wheel).namelist()
