"""The Python files that the house checks read, and how they report what they find."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ("src/twinflow", "cluster", "workers", "runtime", "parallel", "protos")
CODE = (*PACKAGE, "benchmarks", "examples", "scripts")


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed Python file.

    Attributes:
        path: relative to the root of the checkout.
        text: as written.
        tree: as parsed.
    """

    path: Path
    text: str
    tree: ast.Module

    def finding(self, line: int, message: str) -> str:
        """`path:line: message`, as editors understand it."""
        return f"{self.path}:{line}: {message}"


def read(path: Path, root: Path = ROOT) -> Source:
    """Parse one file."""
    text = path.read_text(encoding="utf-8")
    return Source(path.relative_to(root), text, ast.parse(text, str(path)))


def python_sources(folders: tuple[str, ...], root: Path = ROOT) -> Iterator[Source]:
    """The hand-written Python files below `folders`; links are not followed."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            if "_pb2" not in path.name and not _through_link(path, root):
                yield read(path, root)


def tracked_files(root: Path = ROOT) -> list[Path]:
    """Every file under version control that is no link, absolute."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True
    )
    paths = (root / name for name in listing.stdout.split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def report(findings: list[str]) -> int:
    """Write findings to stderr; the exit status says whether there were any."""
    for finding in findings:
        sys.stderr.write(finding + "\n")
    return 1 if findings else 0


def _through_link(path: Path, root: Path) -> bool:
    parents = path.relative_to(root).parents
    return path.is_symlink() or any((root / parent).is_symlink() for parent in parents)
