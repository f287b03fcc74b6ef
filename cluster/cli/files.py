"""Files that commands write for whoever called them, and whether they could be."""

import os
from pathlib import Path

from twinflow.protos.errors import ConfigError

# Formats of pictures that matplotlib writes with nothing else installed.
_PICTURES = (".jpg", ".pdf", ".png", ".svg")


def write_text(path: Path, text: str) -> None:
    """Write a file.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error


def check_file(flag: str, path: Path) -> None:
    """Find out before the work whether there is room for its result.

    Raises:
        ConfigError: the folder is not there or cannot be written to, or the file cannot.
    """
    check_folder(flag, path.parent, meant=path)
    if path.is_dir():
        raise ConfigError(f"{flag} {path}: is a directory, not a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise ConfigError(f"{flag} {path}: cannot be written to")


def check_picture(flag: str, path: Path) -> None:
    """The same for a picture, whose format is what its name ends in.

    Raises:
        ConfigError: see `check_file`; or there is no such format.
    """
    if path.suffix.lower() not in _PICTURES:
        raise ConfigError(f"{flag} {path}: a picture's name ends in {', '.join(_PICTURES)}")
    check_file(flag, path)


def check_folder(flag: str, folder: Path, meant: Path | None = None) -> None:
    """Find out whether files can be made in a folder, and name what was meant if not.

    Raises:
        ConfigError: they cannot.
    """
    if not folder.is_dir():
        raise ConfigError(f"{flag} {meant or folder}: there is no directory {folder}")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{flag} {meant or folder}: the directory {folder} cannot be written to")
