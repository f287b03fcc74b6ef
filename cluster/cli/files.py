"""Files that commands write for whoever called them."""

from pathlib import Path

from twinflow.protos.errors import ConfigError


def write_text(path: Path, text: str) -> None:
    """Write a file.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error
