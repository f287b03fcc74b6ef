"""The changelog and the lock: planted faults are found, and the lock is made as it is checked."""

import pytest
from scripts.check_release import changelog_findings, image_findings, lock_findings
from scripts.lock import Package, image_text, lock_text

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-01-31\n\n## [1.1.0] - 2025-01-31\n"


def test_the_newest_version_is_the_packages() -> None:
    assert list(changelog_findings(CHANGELOG, "1.2.0")) == []


@pytest.mark.parametrize(
    ("changelog", "version"),
    [(CHANGELOG, "1.1.0"), (CHANGELOG, "1.3.0"), ("# Changelog\n", "1.0.0")],
)
def test_another_version_is_found(changelog: str, version: str) -> None:
    assert len(list(changelog_findings(changelog, version))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "torch==2.13.0",
        "nvidia-cublas==13.0.0",
        "triton==3.6.0",
        "twinflow==0.1.0",
        "numpy>=2",
        "numpy",
        "numpy==2.4.6 ; python_version < '4'",
        "numpy @ https://example.org/numpy.whl",
        "numpy @ file:///tmp/numpy.whl",
        "-e .",
        "--index-url https://example.org/simple",
        "NumPy==2.4.6",
        "numpy==2.4.6+local",
    ],
)
def test_lines_that_no_lock_may_have(line: str) -> None:
    assert len(list(lock_findings(f"# A comment.\npip-tools==7.0.0\n{line}\n"))) == 1


PACKAGES = [Package("anyio", "4.16.0", "a" * 64), Package("numpy", "2.4.6", "b" * 64)]


def test_a_written_lock_passes() -> None:
    text = lock_text(PACKAGES)
    assert list(lock_findings(text)) == []
    assert text.splitlines()[-2:] == ["anyio==4.16.0", "numpy==2.4.6"]


def test_written_requirements_of_an_image_pass() -> None:
    assert list(image_findings(image_text(PACKAGES), lock_text(PACKAGES))) == []


@pytest.mark.parametrize(
    ("package", "finding"),
    [
        (Package("numpy", "2.4.6", ""), "has no SHA-256"),
        (Package("numpy", "2.4.5", "b" * 64), "numpy==2.4.5 is not in constraints.txt"),
    ],
)
def test_requirements_that_no_image_may_have(package: Package, finding: str) -> None:
    (found,) = image_findings(image_text([package]), lock_text(PACKAGES))
    assert finding in found
