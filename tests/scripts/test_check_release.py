"""The changelog and the lock: planted faults are found, and the lock is made as it is checked."""

import pytest
from scripts.check_release import changelog_findings, lock_findings
from scripts.lock import lock_text

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


def test_a_written_lock_passes_and_names_no_torch() -> None:
    versions = {"torch": "2.13.0+cpu", "triton": "3.6.0", "numpy": "2.4.6", "anyio": "4.16.0"}
    text = lock_text(versions)
    assert list(lock_findings(text)) == []
    assert text.splitlines()[-2:] == ["anyio==4.16.0", "numpy==2.4.6"]
