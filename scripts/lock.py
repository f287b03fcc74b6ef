"""Write constraints.txt: one version of every package, that work together with any build of torch.

pip resolves the package, its extras and the development tools as for an empty environment, and
installs nothing. Versions that are locked already are kept unless --upgrade is given, so that a
new dependency changes only what it must. torch takes part in the resolution, because it bounds
some of the others, and is left out of the result.

Usage: python -m scripts.lock [--torch torch==2.13.0] [--upgrade]
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.utils import canonicalize_name
from scripts.sources import ROOT

LOCK = ROOT / "constraints.txt"
HEADER = """\
# One version of every package that twinflow, its extras and its development tools need; any build
# of torch that pyproject.toml allows goes with them, and none is named here.
# Written by `python -m scripts.lock`.
"""
# The user's choice of a build, what comes with it, and the tools that install packages.
NOT_LOCKED = re.compile(r"torch|triton|nvidia-.*|cuda-.*|pip|setuptools|wheel|twinflow")


def resolve(torch: str, constraints: Path | None) -> dict[str, str]:
    """Version by canonical name of everything that an empty environment would get."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), torch]
        command += ["--editable", ".[gguf]", "--group", "dev"]
        if constraints is not None:
            command += ["--constraint", str(constraints)]
        subprocess.run(command, cwd=ROOT, check=True)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    packages = [item["metadata"] for item in installs]
    return {canonicalize_name(package["name"]): package["version"] for package in packages}


def lock_text(versions: dict[str, str]) -> str:
    """The constraints file of these versions."""
    lines = [
        f"{name}=={version}"
        for name, version in sorted(versions.items())
        if not NOT_LOCKED.fullmatch(name)
    ]
    return HEADER + "\n".join(lines) + "\n"


def main() -> int:
    """Resolve and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default="torch==2.13.0", help="the build to resolve with")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    arguments = parser.parse_args()
    kept = LOCK if LOCK.exists() and not arguments.upgrade else None
    LOCK.write_text(lock_text(resolve(arguments.torch, kept)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
