"""Write constraints.txt: one version of every package, that work together with any build of torch;
and docker/requirements.txt: those that an image needs, each with the digest of its file.

pip resolves the package, its extras and the development tools as for an empty environment, and
installs nothing. Versions that are locked already are kept unless --upgrade is given, so that a
new dependency changes only what it must. torch takes part in the resolution, because it bounds
some of the others, and is left out of the result. Digests are of the files for this machine, which
must be what the image is: Python 3.11 on Linux, x86-64.

Usage: python -m scripts.lock [--torch torch==2.13.0] [--upgrade]
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from scripts.sources import ROOT

LOCK = ROOT / "constraints.txt"
IMAGE = ROOT / "docker/requirements.txt"
LOCK_HEADER = """\
# One version of every package that twinflow, its extras and its development tools need; any build
# of torch that pyproject.toml allows goes with them, and none is named here.
# Written by `python -m scripts.lock`.
"""
IMAGE_HEADER = """\
# What an image needs beside torch, for Python 3.11 on Linux, x86-64.
# Written by `python -m scripts.lock`.
"""
EVERYTHING = ("--editable", ".[gguf]", "--group", "dev")
# With what builds the wheel.
IN_IMAGE = ("--only-binary", ":all:", "--editable", ".[gguf]", "hatchling")
# The user's choice of a build, what comes with it, and the tools that install packages.
NOT_LOCKED = re.compile(r"torch|triton|nvidia-.*|cuda-.*|pip|setuptools|wheel|twinflow")


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """What pip would install.

    Attributes:
        name: canonical.
        version: exact.
        digest: SHA-256 of the file.
    """

    name: str
    version: str
    digest: str


def resolve(torch: str, wanted: Sequence[str], constraints: Path | None) -> list[Package]:
    """Everything that an empty environment would get for `torch` and `wanted`, without torch."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), torch, *wanted]
        if constraints is not None:
            command += ["--constraint", str(constraints)]
        subprocess.run(command, cwd=ROOT, check=True)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    packages = [_package(item) for item in installs]
    return sorted(package for package in packages if not NOT_LOCKED.fullmatch(package.name))


def _package(item: dict[str, Any]) -> Package:
    hashes = item["download_info"].get("archive_info", {}).get("hashes", {})
    metadata = item["metadata"]
    return Package(
        canonicalize_name(metadata["name"]), metadata["version"], hashes.get("sha256", "")
    )


def lock_text(packages: Sequence[Package]) -> str:
    """The constraints file of these packages."""
    return LOCK_HEADER + "".join(f"{one.name}=={one.version}\n" for one in packages)


def image_text(packages: Sequence[Package]) -> str:
    """The requirements file of these packages."""
    return IMAGE_HEADER + "".join(
        f"{one.name}=={one.version} --hash=sha256:{one.digest}\n" for one in packages
    )


def main() -> int:
    """Resolve and write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default="torch==2.13.0", help="the build to resolve with")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    arguments = parser.parse_args()
    kept = LOCK if LOCK.exists() and not arguments.upgrade else None
    LOCK.write_text(lock_text(resolve(arguments.torch, EVERYTHING, kept)), encoding="utf-8")
    IMAGE.write_text(image_text(resolve(arguments.torch, IN_IMAGE, LOCK)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
