"""Files that are there as a whole or not at all. Does not load torch."""

import os
from pathlib import Path

from twinflow.protos.errors import ConfigError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file at once or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
