"""Check that what a release states more than once is stated the same.

The newest version of CHANGELOG.md is the version of the package, and constraints.txt is a lock
that every machine can use: exact versions of packages, no address, no path, and no build of torch,
which is the user's choice. An image gets the same versions, and no file without a digest.

Usage: python -m scripts.check_release
"""

import re
from collections.abc import Iterator

from scripts.lock import IMAGE, LOCK, NOT_LOCKED
from scripts.sources import ROOT, report

import twinflow

_HEADING = re.compile(r"^## \[(?P<version>[^]]+)\] - \d{4}-\d{2}-\d{2}$", re.MULTILINE)
_HASHED = re.compile(r"(?P<pinned>\S+) --hash=sha256:[0-9a-f]{64}")
_PINNED = re.compile(r"(?P<name>[a-z0-9]+(?:-[a-z0-9]+)*)==[0-9][0-9a-z.]*")


def changelog_findings(changelog: str, version: str) -> Iterator[str]:
    """What is wrong with the newest heading of a changelog in the format of Keep a Changelog."""
    newest = _HEADING.search(changelog)
    if newest is None:
        yield "CHANGELOG.md: no heading of the form `## [1.2.3] - 2026-01-31`"
    elif newest["version"] != version:
        yield f"CHANGELOG.md: the newest version is {newest['version']}, the package's {version}"


def lock_findings(lock: str) -> Iterator[str]:
    """The lines of a constraints file that do not belong there."""
    for number, line in enumerate(lock.splitlines(), start=1):
        if not line or line.startswith("#"):
            continue
        pinned = _PINNED.fullmatch(line)
        if pinned is None:
            yield f"constraints.txt:{number}: {line!r} is not `package==version`"
        elif NOT_LOCKED.fullmatch(pinned["name"]):
            yield f"constraints.txt:{number}: {pinned['name']} is not ours to lock"


def image_findings(requirements: str, lock: str) -> Iterator[str]:
    """The lines of an image's requirements without a digest or with an unlocked version."""
    locked = set(lock.splitlines())
    for number, line in enumerate(requirements.splitlines(), start=1):
        if not line or line.startswith("#"):
            continue
        hashed = _HASHED.fullmatch(line)
        if hashed is None:
            yield f"docker/requirements.txt:{number}: {line!r} has no SHA-256"
        elif hashed["pinned"] not in locked:
            yield f"docker/requirements.txt:{number}: {hashed['pinned']} is not in constraints.txt"


def main() -> int:
    """Check the files of this checkout."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    lock = LOCK.read_text(encoding="utf-8")
    image = IMAGE.read_text(encoding="utf-8")
    return report(
        [
            *changelog_findings(changelog, twinflow.__version__),
            *lock_findings(lock),
            *image_findings(image, lock),
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
