"""The text that the nano models learn: the source of the Python standard library.

It is on every machine that has Python, under the Python Software Foundation License. A hash of a
file's path decides whether it is held out, so that the split is the same for every version of
Python and for whoever repeats it. Does not cut text into tokens.
"""

import hashlib
import json
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

# Tables of character sets that a generator wrote, installed packages, and deliberately bad files.
SKIPPED_FOLDERS = frozenset({"site-packages", "__pycache__", "encodings", "data", "cjkencodings"})
# Longer ones are tables. pydoc_data/topics.py, the language reference, is an exception.
MAX_BYTES = 300_000
ALWAYS_TAKEN = frozenset({"pydoc_data/topics.py"})
HELD_OUT_OF_256 = 5


@dataclass(frozen=True, slots=True)
class Document:
    """One source file.

    Attributes:
        path: relative to the library's folder, with forward slashes.
        text: its content.
    """

    path: str
    text: str


def standard_library() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def documents(library: Path) -> Iterator[Document]:
    """Every file of `library` that is learnt from or held out, in the order of the paths."""
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if SKIPPED_FOLDERS.intersection(relative.parts[:-1]):
            continue
        raw = path.read_bytes()
        if not raw.strip() or (len(raw) > MAX_BYTES and relative.as_posix() not in ALWAYS_TAKEN):
            continue
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            continue
        yield Document(relative.as_posix(), text)


def is_held_out(path: str) -> bool:
    """Whether a file is for evaluation only: by the first byte of its path's SHA-256."""
    return hashlib.sha256(path.encode()).digest()[0] < HELD_OUT_OF_256


def write_documents(target: Path, chosen: Iterable[Document]) -> None:
    """One JSON object per line."""
    with target.open("w", encoding="utf-8") as file:
        for document in chosen:
            file.write(json.dumps(asdict(document)) + "\n")


def write_text(target: Path, chosen: Iterable[Document]) -> None:
    """The documents one after another, as one text, for what takes a text."""
    target.write_text("\n\n".join(document.text for document in chosen), encoding="utf-8")


def read_documents(source: Path) -> Iterator[Document]:
    """What `write_documents` wrote."""
    with source.open(encoding="utf-8") as file:
        for line in file:
            yield Document(**json.loads(line))
