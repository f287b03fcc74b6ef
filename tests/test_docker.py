"""The Dockerfile, as far as can be told without a builder: style, users, and what it copies."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
# Instructions, their continued lines in one.
LINES = [
    line
    for line in TEXT.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
STAGES: dict[str, list[str]] = {}
for _line in LINES:
    if _stage := re.fullmatch(r"FROM (\S+) AS (\S+)", _line):
        STAGES[_stage[2]] = [_line]
    elif STAGES:
        STAGES[next(reversed(STAGES))].append(_line)


def copied() -> list[str]:
    """What the build takes from the repository."""
    sources: list[str] = []
    for line in LINES:
        words = line.split()
        if words[0] == "COPY" and not words[1].startswith("--from"):
            sources += words[1:-1]
    return sources


def test_hadolint_finds_nothing() -> None:
    ran = subprocess.run(
        ["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "")


def test_stages() -> None:
    assert STAGES.keys() == {"base", "build", "cpu", "cuda"}
    bases = {name: lines[0].split()[1] for name, lines in STAGES.items()}
    assert bases == {"base": "${PYTHON_IMAGE}", "build": "base", "cpu": "base", "cuda": "base"}
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", TEXT, re.M)
    # docker/requirements.txt has the files for this Python.
    assert re.fullmatch(r"python:3\.11-slim-\w+", image)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_runs_as_the_user_of_the_chart(target: str) -> None:
    (user,) = [line.split()[1] for line in STAGES[target] if line.startswith("USER")]
    values = yaml.safe_load((ROOT / "helm/twinflow/values.yaml").read_text())
    security = values["podSecurityContext"]
    assert user == f"{security['runAsUser']}:{security['runAsGroup']}"
    # What comes after is run as that user.
    after = STAGES[target][[line.split()[0] for line in STAGES[target]].index("USER") :]
    assert not [line for line in after if line.startswith("RUN")]
    assert 'ENTRYPOINT ["twinflow"]' in after


def test_packages_have_digests() -> None:
    (install,) = [
        line for line in STAGES["build"] if "docker/requirements.txt" in line and "pip" in line
    ]
    assert "--require-hashes" in install and "--no-deps" in install


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert set(copied()) == let_in
    assert all((ROOT / name).exists() for name in let_in)


@pytest.mark.slow
def test_what_is_copied_is_all_that_a_wheel_needs(tmp_path: Path) -> None:
    for name in copied():
        source, target = ROOT / name, tmp_path / "context" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target, symlinks=True, ignore=unwanted)
        else:
            shutil.copy(source, target)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(tmp_path / "context")], check=True)
    (wheel,) = tmp_path.glob("twinflow-*.whl")
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in ("twinflow/cluster/launch/ray_up/aws.yaml", "twinflow/protos/errors.py"):
        assert name in listed
