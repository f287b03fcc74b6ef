"""A model directory and the files that may be opened in it.

Every file of a checkpoint is found through `ModelDirectory`, which refuses names that are paths,
special files and links that lead out of the directory. It does not look into the files.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from twinflow.protos.errors import CheckpointError

_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A resolved directory.

    The Hugging Face hub's cache keeps files in `models--ORG--NAME/blobs` and fills
    `models--ORG--NAME/snapshots/REVISION` with links to them. Links are therefore followed inside
    the boundary only: the `models--*` folder for a directory of that layout, else the directory.

    Attributes:
        path: the directory, links resolved.
        boundary: files that links lead to must lie in here.
    """

    path: Path
    boundary: Path

    @classmethod
    def open(cls, directory: Path) -> "ModelDirectory":
        """Resolve `directory`.

        Raises:
            CheckpointError: it does not exist, is a file, or cannot be listed.
        """
        try:
            path = directory.resolve(strict=True)
            if not path.is_dir():
                raise CheckpointError(f"{directory}: {_why_not_a_directory(path)}")
            os.listdir(path)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{directory}: no such directory; expected a local Hugging Face model directory "
                f"(models are not downloaded)"
            ) from error
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{directory}: cannot be read: {_reason(error)}") from error
        return cls(path, _boundary(path))

    def names(self) -> list[str]:
        """Names of what lies in the directory, sorted."""
        try:
            return sorted(os.listdir(self.path))
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be listed: {_reason(error)}") from error

    def find(self, name: str) -> Path | None:
        """The regular file called `name`, links resolved; None if there is none.

        Raises:
            CheckpointError: `name` is not a plain file name, or what it names is not a regular
                file inside the boundary.
        """
        if name != os.path.basename(name) or name in ("", ".", "..") or "\0" in name:
            raise CheckpointError(
                f"{self.path}: found the file name {name!r}, expected a plain name without folders"
            )
        try:
            target = (self.path / name).resolve(strict=True)
            mode = target.stat().st_mode
        except FileNotFoundError as error:
            if (self.path / name).is_symlink():
                raise CheckpointError(
                    f"{self.path / name}: is a link to a file that does not exist"
                ) from error
            return None
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.path / name}: cannot be opened: {_reason(error)}"
            ) from error
        if not target.is_relative_to(self.boundary):
            raise CheckpointError(
                f"{self.path / name}: is a link to {target}, outside of {self.boundary}; copy the "
                f"file into the directory"
            )
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{self.path / name}: is not a regular file")
        return target

    def require(self, name: str, hint: str) -> Path:
        """Like `find`, but a missing file is an error that ends with `hint`."""
        found = self.find(name)
        if found is None:
            raise CheckpointError(f"{self.path / name}: no such file; {hint}")
        return found


def refusal(name: str, path: Path) -> str | None:
    """Why a weight file called `name` at `path` is not opened; None if its kind is not refused."""
    suffix = Path(name).suffix.lower()
    if suffix == ".gguf":
        return (
            f"{path}: GGUF files are not served directly; convert it first with: "
            f"twinflow models import {path} DIR"
        )
    if suffix in _PICKLE_SUFFIXES:
        return (
            f"{path}: {suffix} files can run code when they are read and are never opened; "
            f"expected the weights as model.safetensors"
        )
    return None


def _why_not_a_directory(path: Path) -> str:
    refused = refusal(path.name, path)
    if refused is not None:
        return refused.removeprefix(f"{path}: ")
    return "is a file, expected a Hugging Face model directory"


def _boundary(path: Path) -> Path:
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent
    return path


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
